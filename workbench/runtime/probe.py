"""What this device can do, tried in under a second: bytes read, arithmetic by type, the price of an operation."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from workbench.core import files
from workbench.core.device import device_failed, device_name, machine, seeded, synchronize
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.remembered import recall, remember
from workbench.core.value import Value
from workbench.models import sharing
from workbench.models.packed import linear_layers, replace_module
from workbench.runtime.footprint import Work, count_pass, numbers
from workbench.runtime.forward import using
from workbench.runtime.kernels import quickened
from workbench.runtime.room import free_bytes
from workbench.runtime.rows import Rows
from workbench.runtime.trial import some_tokens, way_of

MEASURED = "measured here"
LARGEST = 1 << 29  # bytes read to find the bandwidth: larger than the caches of big servers
SIZES = (256, 1024)  # of the square products; the larger only where the smaller was quick
QUICK = 0.05  # seconds that one product may take
TYPES = (torch.float32, torch.bfloat16, torch.float16)
CONTEXT = 32  # tokens before the one that is timed to find the price of an operation


class Device(Value):
    """What a device can do; the numbers of a roofline.

    Attributes:
        name: what it is called.
        bandwidth: bytes that it reads from its memory in a second.
        flops: operations a second by type, such as ``{"float32": 1e11, "bfloat16": 2e11, "int8": 4e11}``.
        call: seconds that starting one operation takes.
        memory: bytes that it holds; 0 where that is not known.
        source: where the numbers are from.
        overlaps: whether operations are started while earlier ones still run, as on a GPU.
    """

    name: str = Field(min_length=1, max_length=100)
    bandwidth: float = Field(gt=0, le=1e16)
    flops: dict[str, float] = Field(default={})
    call: float = Field(default=0.0, ge=0, le=1.0)
    memory: int = Field(default=0, ge=0)
    source: str = Field(default="given", max_length=300)
    overlaps: bool = True

    @field_validator("flops")
    @classmethod
    def _rates(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(math.isfinite(each) and each > 0 for each in value.values()):
            raise InvalidInput("A device's operations a second are numbers above 0.")
        return value

    def __hash__(self) -> int:
        return hash((self.name, self.bandwidth, self.call, self.memory))

    def rate(self, kind: str) -> float:
        """Operations a second in a type; in float32 or the next best where there is no figure, infinite without any."""
        for each in (kind, "bfloat16" if kind == "float16" else "float16", "float32", "bfloat16", "int8"):
            if each in self.flops:
                return self.flops[each]
        return math.inf


_found: dict[str, Device] = {}


def this_device(device: torch.device, again: bool = False) -> Device:
    """What a device of this machine can do: tried once for its threads and these versions, and remembered.

    Args:
        device: the CPU, or a GPU.
        again: try once more, whatever is remembered.

    Raises:
        OutOfMemory: the device has too little memory.
    """
    about = [str(device), machine(device), files.sha256(Path(__file__))]
    key = str(about)
    if again or key not in _found:
        found = None if again else _read(recall("devices", about))
        if found is None:
            with using("Trying what this device can do"):
                found = _tried(device)
            remember("devices", about, found.model_dump(mode="json"))
        _found[key] = found
    return _found[key]


def _read(found: Any) -> Device | None:
    """What was remembered; nothing where it is not ours."""
    try:
        read = Device(**found)
    except (TypeError, WorkbenchError):
        return None
    return read if read.source == MEASURED else None


def _tried(device: torch.device) -> Device:
    calls = Calls(device)
    rates = {str(kind).removeprefix("torch."): _flops(device, kind) for kind in (*TYPES, torch.int8)}
    return Device(
        name=device_name(device)[:100] or device.type,
        bandwidth=bandwidth(device),
        flops={kind: rate for kind, rate in rates.items() if rate},
        call=sorted(calls.sample() for _ in range(5))[2],
        memory=free_bytes(device).total,
        source=MEASURED,
        overlaps=device.type != "cpu",
    )


def bandwidth(device: torch.device, rounds: int = 3) -> float:
    """Bytes that a matrix is read with in a second, by the better of a sum and a product with one row."""
    size = min(LARGEST, max(1 << 20, free_bytes(device).free // 8))
    matrix = torch.ones(size // 4 // 2048, 2048, device=device)
    row = torch.ones(1, 2048, device=device)
    works: tuple[Callable[[], Any], ...] = (matrix.sum, lambda: F.linear(row, matrix))
    quickest = min(seconds(work, device) for _ in range(rounds) for work in works)
    return matrix.numel() * 4 / quickest


def _flops(device: torch.device, kind: torch.dtype) -> float:
    """Operations a second of a square product in a type; 0 where there is none."""
    rate = 0.0
    for size in SIZES:
        if rate and 2 * size**3 / rate > QUICK:
            break
        a, b = (torch.ones(size, size, device=device).to(kind) for _ in range(2))

        def work(a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            return torch._int_mm(a, b) if kind == torch.int8 else a @ b

        try:
            rate = max(rate, 2 * size**3 / min(seconds(work, device) for _ in range(4)))
        except RuntimeError as error:  # no such product on this device
            if device_failed(error):
                raise
            return rate
    return rate


class Calls:
    """What starting an operation costs, on a model that is too small for anything else to matter.

    What is timed is a token of a real transformers model, so that Python's part of an operation counts: it is most of
    it. To be used within `using`.
    """

    def __init__(self, device: torch.device) -> None:
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        config = LlamaConfig(vocab_size=64, num_hidden_layers=6, **sizes)
        with seeded(0, device):
            self._model = AutoModelForCausalLM.from_config(config).to(device).eval().requires_grad_(False)
        self._device = device
        self._work = count_pass(self._model, 1, CONTEXT)
        self._products = Products(self._work, self._model.dtype, device)
        self.sample()  # the first time pays for what is loaded then

    def sample(self) -> float:
        """Seconds an operation outside the products, from a few tokens."""
        rows = Rows(quickened(self._model), [some_tokens(self._model, CONTEXT)], way_of(self._model))
        rows.append(rows.logits().argmax(dim=-1))
        token = sorted(seconds(rows.logits, self._device) for _ in range(5))[2]
        products = sorted(seconds(self._products.run, self._device) for _ in range(5))[2]
        return max(1e-9, token - products) / max(1, self._work.operations - self._work.product_operations)


class Products:
    """The products of a pass, to be run again by themselves, in their order; to be used within `using`."""

    def __init__(self, work: Work, dtype: torch.dtype, device: torch.device, rows: int = 1) -> None:
        made: dict[tuple[int, int], torch.Tensor] = {}
        self._calls = []
        for layer, count in work.products:
            shape = (count * rows, _columns(layer))
            if shape not in made:
                made[shape] = torch.linspace(-1, 1, shape[0] * shape[1], device=device).view(shape).to(dtype)
            self._calls.append((layer, made[shape]))

    def run(self) -> None:
        """All of them once."""
        for layer, rows in self._calls:
            layer(rows)


class _Given(nn.Module):
    """Stands in for a linear layer: gives what was made before instead of multiplying."""

    def __init__(self, layer: nn.Module, out: int) -> None:
        super().__init__()
        self._out, self._layer = out, [layer]  # in a list, so that it is no part of the model
        self._made: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x (..., in) -> (..., out)``, the same numbers whatever is asked."""
        shape = (*x.shape[:-1], self._out)
        if shape not in self._made:
            self._made[shape] = torch.full(shape, 0.01, dtype=x.dtype, device=x.device)
        return self._made[shape]

    def __getattr__(self, name: str) -> Any:
        """What a model looks up of its layer, such as the type of its weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattribute__("_layer")[0], name)


def without_products(model: PreTrainedModel, work: Work) -> PreTrainedModel:
    """A copy that shares every tensor and multiplies by none: what is left is all that a pass does besides."""
    shared = sharing.share(model)
    ran = {id(layer) for layer, _ in work.products}
    for (path, layer), (_, copied) in zip(
        list(linear_layers(model, head=True)), list(linear_layers(shared, head=True)), strict=True
    ):
        if id(layer) in ran:
            replace_module(shared, path, _Given(copied, numbers(layer) // _columns(layer)))
    return shared


def _columns(layer: Any) -> int:
    inner = getattr(layer, "base_layer", layer)
    return int(inner.in_features) if hasattr(inner, "in_features") else numbers(inner) // int(inner.nf)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long some work takes."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started
