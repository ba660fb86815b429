"""What a variant runs on: the product of each kind of layer, as tried on this machine."""

import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core.drawn import HTML, drawn
from workbench.models.packed import PackedLinear, dense_weight, is_adapted, linear_layers
from workbench.models.packed.products import MOST_OUTPUTS, MOST_ROWS, Trial, trial
from workbench.runtime.forward import using
from workbench.runtime.kernels import DenseLinear, quickened
from workbench.runtime.rows import Rows
from workbench.runtime.trial import some_tokens, way_of
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas

RUNS = 3
MOST_SHARE = 0.9  # of a token's time that its products can take
LAYERS, BYTES = 8, 64_000_000  # packed ones that are run in turn, at most

_tokens: "WeakKeyDictionary[PreTrainedModel, float]" = WeakKeyDictionary()


@dataclass(frozen=True)
class LayerProducts:
    """The layers of one format and shape.

    Attributes:
        format: what the weights are stored as.
        shape: ``(out, in)``.
        count: how many layers there are of it.
        one: what was tried for one row, which is a token of one request.
        many: what was tried for many rows, such as a prompt. Seconds are of the first outputs of a wide layer.
    """

    format: str
    shape: tuple[int, int]
    count: int
    one: Trial
    many: Trial


@dataclass(frozen=True)
class Kernels:
    """What a variant runs on.

    Attributes:
        variant: its name.
        layers: one entry for each format and shape.
    """

    variant: str
    layers: tuple[LayerProducts, ...]

    def table(self) -> "pandas.DataFrame":
        """One row for each format and shape; times in microseconds, NaN where none was taken."""
        import pandas

        rows = [
            {
                "format": each.format,
                "outputs": each.shape[0],
                "inputs": each.shape[1],
                "layers": each.count,
                "one row": each.one.chosen,
                "one row, us": _micro(each.one),
                f"{MOST_ROWS} rows": each.many.chosen,
                f"{MOST_ROWS} rows, us": _micro(each.many),
                "tried": tried(each.one),
                f"tried, {MOST_ROWS} rows": tried(each.many),
            }
            for each in self.layers
        ]
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))


def tried(found: Trial) -> str:
    """The candidates with their times, the fastest first."""
    order = sorted(found.seconds.items(), key=lambda item: item[1])
    return ", ".join(f"{name} {1e6 * seconds:.0f} us" for name, seconds in order)


def kernels(variant: Variant) -> Kernels:
    """What a variant runs on: for each format and shape of its linear layers, the product and what else was tried.

    On a CPU, what was not tried yet is tried now, in well under a second for all; a GPU's products are not timed.
    """
    kinds: dict[str, list[nn.Module]] = {}
    for _, layer in linear_layers(variant.model, head=True):
        inner = layer.get_submodule("base_layer") if is_adapted(layer) else layer
        kinds.setdefault(json.dumps([_format(inner), *dense_shape(inner)]), []).append(inner)
    with using(variant.name):
        layers = [
            LayerProducts(
                _format(alike[0]), dense_shape(alike[0]), len(alike), *(_trial(alike[0], rows, variant.dtype)
                for rows in (1, MOST_ROWS)),
            )
            for alike in kinds.values()
        ]  # fmt: skip
    return Kernels(variant.name, tuple(layers))


def token_ratio(variant: Variant, layers: Sequence[nn.Module], pack: Callable[[Tensor], PackedLinear]) -> float | None:
    """How many times as long a token would take with these layers packed, by a trial of one of each shape.

    None on a GPU, where one product alone says little.

    Args:
        variant: whose token is timed as it is.
        layers: dense ones of its model.
        pack: makes of a weight ``(out, in)``, or of its first outputs, the layer that would replace it.
    """
    if variant.device.type != "cpu":
        return None
    shapes: dict[tuple[int, int], list[nn.Module]] = {}
    for layer in layers:
        shapes.setdefault(dense_shape(layer), []).append(layer)
    with using("Trying the products"):
        whole, before, after = _token_seconds(variant.model), 0.0, 0.0
        for (out, columns), alike in shapes.items():
            weights = [dense_weight(layer) for layer in alike]  # all in turn, so that none stays in a cache
            packed = pack(weights[0][:MOST_OUTPUTS])
            most = max(1, min(LAYERS, BYTES // (4 * columns * min(out, MOST_OUTPUTS))))
            copies, row = [deepcopy(packed) for _ in weights[:most]], torch.ones(1, columns, dtype=variant.dtype)
            before += _least(partial(_run, [partial(F.linear, weight=weight) for weight in weights], row))
            each = _least(partial(_run, copies, row)) / len(copies) * out / min(out, MOST_OUTPUTS)
            after += each * len(alike)
    share = min(before / whole, MOST_SHARE)  # the two were not timed at once
    return 1 + share * (after / before - 1) if before else 1.0


def _run(products: Sequence[Callable[[Tensor], Tensor]], row: Tensor) -> None:
    for product in products:
        product(row)


def dense_shape(layer: nn.Module) -> tuple[int, int]:
    """``(out, in)`` of a linear layer."""
    if isinstance(layer, PackedLinear):
        return layer.out_features, layer.in_features
    out, columns = dense_weight(layer).shape
    return out, columns


def _format(layer: nn.Module) -> str:
    if not isinstance(layer, PackedLinear):
        return str(dense_weight(layer).dtype).removeprefix("torch.")
    said = ", ".join(f"{name} {value}" for name, value in layer.options.items() if name != "shape")
    return type(layer).__name__.removesuffix("Linear") + (f" ({said})" if said else "")


def _trial(layer: nn.Module, rows: int, dtype: torch.dtype) -> Trial:
    if isinstance(layer, PackedLinear):
        if layer.get_buffer("weight").device.type == "cpu":
            return trial(layer, rows, dtype)
        return Trial(next(iter(layer.products(rows))), {})
    weight, name = dense_weight(layer), "torch's linear"
    if weight.device.type != "cpu":
        return Trial(name, {})
    if rows > 1 and weight.dtype == torch.float32:
        return trial(DenseLinear(nn.Parameter(weight, requires_grad=False), None), rows, dtype)
    weight, x = weight[:MOST_OUTPUTS], torch.ones(rows, weight.shape[1], dtype=weight.dtype)
    return Trial(name, {name: _least(lambda: F.linear(x, weight))})


def _token_seconds(model: PreTrainedModel) -> float:
    """Of one token after a short prompt."""
    if model not in _tokens:
        going = Rows(quickened(model), [some_tokens(model, 4)], way_of(model))

        def token() -> None:
            going.append(going.logits().argmax(dim=-1))

        token()
        _tokens[model] = _least(token)
    return _tokens[model]


def _least(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, after one that pays for set-up."""
    work()
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _micro(found: Trial) -> float:
    return 1e6 * found.seconds.get(found.chosen, float("nan"))
