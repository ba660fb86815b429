"""Linear layers whose weight is stored in fewer bits, each run by a kernel of the device.

Every class packs a dense weight ``(out, in)`` with `pack`, multiplies in `forward`, and gives the weight back with
`dequantize`. Its buffers are all that is saved; `options` holds the rest, so that `unpack_module` can rebuild it.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.errors import InvalidInput, NotAvailable

KINDS: dict[str, type["Packed"]] = {}
KERNEL_COLUMNS = 32  # torch's int8 weight kernel reads whole blocks of columns, past the end of others
FEW_ROWS = 16  # below this a product is bound by reading the weight, above it by arithmetic


class Packed(nn.Module):
    """A module whose weight ``(out, in)`` is stored packed.

    Args:
        options: JSON values that with the tensors define the module.
        tensors: named buffers, in the layout that is saved.
    """

    options: dict[str, Any]
    in_features: int
    out_features: int

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.options = options
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def saved_tensors(self) -> dict[str, Tensor]:
        """The buffers in the layout that is saved: independent of this machine's kernels."""
        return dict(self.named_buffers(recurse=False))

    def dequantize(self) -> Tensor:
        """The weight ``(out, in)`` in float32."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.options.items())


class PackedLinear(Packed):
    """``x (..., in) -> x @ weight.T + bias (..., out)`` with the weight packed."""

    bias: Tensor | None
    bits: ClassVar[float]

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(options, tensors)
        self.out_features, self.in_features = options["shape"]
        if "bias" not in tensors:
            self.bias = None

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, **options: Any) -> Self:
        """Pack a dense weight ``(out, in)``.

        Raises:
            InvalidInput: the weight has a single column, which no kernel takes.
        """
        if weight.shape[1] < 2:
            raise InvalidInput(f"A weight of shape {tuple(weight.shape)} is too narrow to pack: keep it dense.")
        tensors = cls.pack_weight(weight, **options)
        if bias is not None:
            tensors["bias"] = bias.detach()
        return cls({"shape": list(weight.shape), **options}, tensors)

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        """The buffers that hold a dense weight ``(out, in)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():  # the kernels divide by the number of rows
            return x.new_empty(*x.shape[:-1], self.out_features)
        out = self.multiply(x.reshape(-1, self.in_features))
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def multiply(self, rows: Tensor) -> Tensor:
        """``rows (n, in) -> (n, out)``."""
        raise NotImplementedError


class Int8Linear(PackedLinear):
    """Weight-only int8, one symmetric scale an output row; activations stay in floating point.

    The scale is rounded up to bfloat16 before the weight is rounded, so that the bfloat16 kernel uses it exactly.
    """

    weight: Tensor
    scale: Tensor
    bits = 8

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        peak = weight.detach().abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12)
        scale = _round_up_bfloat16(peak / 127)
        quantized = weight.detach().float().div(scale).round_().clamp_(-127, 127)
        return {"weight": quantized.to(torch.int8).contiguous(), "scale": scale.squeeze(1)}

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale.unsqueeze(1)

    def multiply(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu":
            return F.linear(rows, self.weight.to(rows.dtype)) * self.scale.to(rows.dtype)
        if rows.shape[0] <= FEW_ROWS and self.in_features % KERNEL_COLUMNS == 0:
            ones = self.scale.to(torch.bfloat16)
            return torch._weight_int8pack_mm(rows.to(torch.bfloat16), self.weight, ones)
        kind = torch.bfloat16 if fast_bfloat16() else torch.float32
        return F.linear(rows.to(kind), self.weight.to(kind)).float().mul_(self.scale)


class Int8DynamicLinear(Int8Linear):
    """Int8 weights and int8 activations, the activation's scale taken from each token as it comes (W8A8)."""

    def multiply(self, rows: Tensor) -> Tensor:
        peak = rows.abs().amax(dim=-1, keepdim=True).float().clamp_(min=1e-12)
        scale = peak.div_(127)
        quantized = rows.float().div(scale).round_().to(torch.int8)
        return _int8_product(quantized, self.weight).float().mul_(scale).mul_(self.scale)


class LLMInt8Linear(PackedLinear):
    """LLM.int8(): int8 except for activation columns above a threshold, which stay in 16 bits (bitsandbytes)."""

    weight: Tensor
    scale: Tensor
    bits = 8

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        quantized, scale, _ = bitsandbytes().functional.int8_vectorwise_quant(weight.detach().half())
        return {"weight": quantized, "scale": scale}

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale.view(-1, 1).float() / 127

    def multiply(self, rows: Tensor) -> Tensor:
        rows = rows.half()  # the kernels of bitsandbytes take 16-bit activations
        functional = bitsandbytes().functional
        quantized, scale, outliers = functional.int8_vectorwise_quant(rows, threshold=self.options["threshold"])
        product: Tensor = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            rows, quantized, self.weight, scale, self.scale, outliers, None
        )[0]
        return product


class Bits4Linear(PackedLinear):
    """NF4 or FP4 in blocks with one scale each (bitsandbytes).

    On a CPU with AVX512-BF16 the weight is kept in the layout of the fast kernel, with 16-bit scales.
    """

    weight: Tensor
    scale: Tensor
    bits = 4

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(options, tensors)
        self.state = self._state(self.scale)
        if self._fast_kernel():
            functional = bitsandbytes().functional
            self.weight, self.state = functional._convert_weight_packed_for_cpu(self.weight, self.state)
            self.scale = self.state.absmax

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        packed, state = bitsandbytes().functional.quantize_4bit(
            weight.detach().contiguous(), blocksize=options["block_size"], quant_type=options["quant_type"]
        )
        return {"weight": packed, "scale": state.absmax}

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors = super().saved_tensors()
        if self._fast_kernel():
            # The inverse restores the weight but leaves the scales (blocks, out), and it changes the state it is given.
            weight, _ = bitsandbytes().functional._convert_weight_packed_for_cpu_inverse(self.weight, copy(self.state))
            tensors |= {"weight": weight.view(-1, 1), "scale": self.scale.t().float().reshape(-1)}
        return tensors

    def dequantize(self) -> Tensor:
        saved = self.saved_tensors()
        weight: Tensor = bitsandbytes().functional.dequantize_4bit(saved["weight"], self._state(saved["scale"]))
        return weight.float()

    def multiply(self, rows: Tensor) -> Tensor:
        kind = torch.bfloat16 if self._fast_kernel() else rows.dtype
        product: Tensor = bitsandbytes().matmul_4bit(rows.to(kind), self.weight.t(), quant_state=self.state)
        return product

    def _state(self, scale: Tensor) -> Any:
        functional = bitsandbytes().functional
        return functional.QuantState(
            absmax=scale,
            shape=torch.Size(self.options["shape"]),
            code=functional.get_4bit_type(self.options["quant_type"], device=self.weight.device),
            blocksize=self.options["block_size"],
            quant_type=self.options["quant_type"],
            dtype=torch.float32,
        )

    def _fast_kernel(self) -> bool:
        rows, columns = self.options["shape"]
        fits = rows % 32 == 0 and columns % self.options["block_size"] == 0
        return fits and self.weight.device.type == "cpu" and bool(bitsandbytes().functional.has_avx512bf16())


class Int8Embedding(Packed):
    """Token embedding that reads the int8 rows of the output head it is tied to."""

    weight: Tensor
    scale: Tensor

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(options, tensors)
        self.out_features, self.in_features = tensors["weight"].shape

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale.unsqueeze(1)

    def forward(self, ids: Tensor) -> Tensor:
        kind = getattr(torch, self.options["dtype"])
        rows = self.weight[ids].float() * self.scale[ids].unsqueeze(-1) * self.options.get("multiplier", 1.0)
        embedded: Tensor = rows.to(kind)
        return embedded


def dense_weight(module: nn.Module) -> Tensor:
    """The weight ``(out, in)`` of a linear layer, whether dense, transposed (GPT-2's Conv1D) or packed."""
    if isinstance(module, Packed):
        return module.dequantize()
    weight = module.get_parameter("weight").detach()
    return weight.t() if isinstance(module, Conv1D) else weight


def linear_layers(model: nn.Module, head: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every linear layer, packed or not; the output head only when asked for."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | PackedLinear) and (head or module is not output):
            yield path, module


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path of the model."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def unpack_module(kind: str, options: dict[str, Any], tensors: dict[str, Tensor]) -> Packed:
    """Rebuild a packed module from what was saved of it."""
    if kind not in KINDS:
        raise InvalidInput(f"This export holds layers of the kind '{kind}', which this version does not know.")
    return KINDS[kind](options, tensors)


def bitsandbytes() -> Any:
    """The library, imported where it is used and kept from fetching native code.

    Where the package `kernels` is installed, importing bitsandbytes would download and load a kernel from the hub.
    """
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would say that it found no kernel to fetch
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes as library
    except ImportError:
        raise NotAvailable("This step needs bitsandbytes: run `pip install bitsandbytes`.") from None
    finally:
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
    return library


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    with contextlib.suppress(AttributeError):
        probe: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported
        return bool(probe()) and torch.cpu._is_avx512_bf16_supported()
    return False


def _round_up_bfloat16(values: Tensor) -> Tensor:
    """The smallest bfloat16 numbers not below the (positive) float32 values, as float32."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


def _int8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows (n, in) @ weight (out, in).T`` in int32; CUDA wants more than 16 rows, so the few are padded."""
    if rows.device.type != "cuda" or rows.shape[0] > FEW_ROWS:
        return torch._int_mm(rows, weight.t())
    padded = F.pad(rows, (0, 0, 0, 2 * FEW_ROWS - rows.shape[0]))
    return torch._int_mm(padded, weight.t())[: rows.shape[0]]
