"""What every packed layer is, and finding, replacing and rebuilding them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from copy import copy, deepcopy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import InvalidInput
from workbench.models.packed.products import Product, product_of

KINDS: dict[str, type["Packed"]] = {}
COLD_BYTES, MOST_COPIES = 32_000_000, 16  # tried in turn: while a model is run, no weight is still in a cache either


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
    """``x (..., in) -> x @ weight.T + bias (..., out)`` with the weight packed.

    Attributes:
        uses: the product for so many rows of a type, once it was chosen.
    """

    bias: Tensor | None
    bits: float

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(options, tensors)
        self.uses: dict[tuple[int, torch.dtype], Product] = {}
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
        rows = x.reshape(-1, self.in_features).contiguous()
        learns = rows.requires_grad and torch.is_grad_enabled()
        out: Tensor = _Product.apply(rows, self) if learns else self.multiply(rows)  # type: ignore[no-untyped-call]
        if (bias := self._buffers.get("bias")) is not None:
            out = out + bias
        if out.dtype is not x.dtype:
            out = out.float() if x.dtype is torch.float32 else out.to(x.dtype)  # the first is twice as quick
        return out.view(*x.shape[:-1], self.out_features)

    def multiply(self, rows: Tensor) -> Tensor:
        """``rows (n, in) -> (n, out)``: on a CPU by the product that was fastest here, elsewhere by the first."""
        if rows.is_cpu:
            return product_of(self, rows)(self, rows)
        return next(iter(self.products(len(rows)).values()))(self, rows)

    def products(self, rows: int) -> Mapping[str, Product]:
        """By name the products for so many rows that give what the format says, within its rounding.

        Rounding is stated in bits: a product may round activations and results to the 8 bits of bfloat16.
        """
        return {"unpacked once a batch": unpacked_product}

    def samples(self, outputs: int) -> list[Self]:
        """Layers as this one, of its first outputs, so many at most: to try products on in turn."""
        like = copy(self)
        if self.out_features > outputs:
            like.uses, like.out_features = {}, outputs
            like._buffers = {name: self.first(name, outputs) for name in self._buffers if name != "bias"}
        held = sum(each.nbytes for each in like.buffers())
        return [like, *(deepcopy(like) for _ in range(min(MOST_COPIES, COLD_BYTES // held)))]

    def first(self, name: str, outputs: int) -> Tensor:
        """What a buffer holds for the first outputs."""
        return self.get_buffer(name)[:outputs]

    def dense(self, kind: torch.dtype) -> Tensor:
        """The weight ``(out, in)`` in a type to multiply by."""
        return self.dequantize().to(kind)


def unpacked_product(layer: PackedLinear, rows: Tensor) -> Tensor:
    """By the weight unpacked in the type of the rows."""
    return F.linear(rows, layer.dense(rows.dtype))


class _Product(torch.autograd.Function):
    """A packed layer's product, for training what lies before it: its own codes stay as they are."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: PackedLinear) -> Tensor:
        """``rows (n, in) -> (n, out)``."""
        ctx.layer, ctx.kind = layer, rows.dtype
        return layer.multiply(rows)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """By the unpacked weight."""
        gradient = outer[0].to(ctx.kind)
        return gradient @ ctx.layer.dense(ctx.kind), None


def is_adapted(module: nn.Module) -> bool:
    """Whether a layer is one of peft's: another layer with an adapter beside it."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def adapted_weight(layer: Any) -> Tensor:
    """The weight ``(out, in)`` that a layer and its active adapters stand for, in float32."""
    weight = dense_weight(layer.base_layer).float()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            change = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() * layer.scaling[name]
            if name in layer.lora_magnitude_vector:  # DoRA: the sum is brought to a length of its own, row by row
                length = layer.lora_magnitude_vector[name].weight.float()
                weight = weight + change
                weight = weight * (length / weight.norm(dim=1)).unsqueeze(1)
            else:
                weight = weight + change
    return weight


def dense_weight(module: nn.Module) -> Tensor:
    """The weight ``(out, in)`` of a linear layer: dense, transposed (GPT-2's Conv1D), packed or with an adapter."""
    if is_adapted(module):
        return adapted_weight(module)
    if isinstance(module, Packed):
        return module.dequantize()
    weight = module.get_parameter("weight").detach()
    return weight.t() if isinstance(module, Conv1D) else weight


def linear_layers(model: nn.Module, head: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every linear layer, packed or not; the output head only when asked for."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    inside = "\0"  # of a layer with an adapter, whose parts are no layers of the model
    for path, module in model.named_modules():
        if is_adapted(module):
            inside = f"{path}."
        elif path.startswith(inside) or not isinstance(module, nn.Linear | Conv1D | PackedLinear):
            continue
        if head or module is not output:
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


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    with contextlib.suppress(AttributeError):
        probe: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported
        return bool(probe()) and torch.cpu._is_avx512_bf16_supported()
    return False
