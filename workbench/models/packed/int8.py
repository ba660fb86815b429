"""Eight bits with one scale an output row, multiplied by torch's own kernels."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.models.packed.base import Packed, PackedLinear, fast_bfloat16
from workbench.models.packed.products import Product

KERNEL_COLUMNS = 32  # torch's int8 weight kernel reads whole blocks of columns, past the end of others
KERNEL_ROWS = 64  # beyond these it reads the weight so often that it need not be tried
GPU_ROWS = 17  # the fewest that CUDA's integer product takes
WIDE = 16  # outputs an input from which on a layer is an output head, whose result is no input of another layer


class Int8Linear(PackedLinear):
    """Weight-only int8, one symmetric scale an output row; activations stay in floating point.

    The scale is rounded up to bfloat16 before the weight is rounded, so that the bfloat16 kernel uses it exactly. On a
    CPU the output head is multiplied with 16-bit integer activations instead: logits rounded to bfloat16 would cost
    about as much as an eighth of what rounding all the weights costs.
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

    def products(self, rows: int) -> Mapping[str, Product]:
        """Straight from the integers, with activations in two integers each, or with the weight widened."""
        if self.weight.device.type != "cpu":
            return {"widened": lambda layer, x: scaled_product(x, layer.weight, layer.scale)}
        wide, exact = self.out_features >= WIDE * self.in_features, exact_int8_products()
        found: dict[str, Product] = {}
        if rows <= KERNEL_ROWS and self.in_features % KERNEL_COLUMNS == 0 and not (wide and exact):
            found["int8 kernel"] = kernel_product
        if exact:
            found["two integer products"] = split_scaled
        if not (wide and exact):
            found["widened to float32"] = widened_product
            if fast_bfloat16():
                found["widened to bfloat16"] = widened_product16
        return found


class Int8DynamicLinear(Int8Linear):
    """Int8 weights and int8 activations, the activation's scale taken from each token as it comes (W8A8).

    Where a CPU's integer products overflow, the same integers are multiplied in floating point.
    """

    def products(self, rows: int) -> Mapping[str, Product]:
        """Of integers; in floating point they are exact in float32, and few rows come back in bfloat16."""
        if self.weight.device.type != "cpu":
            return {"rounded": rounded_on_gpu}
        if exact_int8_products():
            return {
                "integer product": rounded_exactly,
                "rounded, widened to float32": rounded_before(widened_product),
            }
        return {f"rounded, {name}": rounded_before(product) for name, product in super().products(rows).items()}


def kernel_product(layer: Int8Linear, rows: Tensor) -> Tensor:
    """By torch's kernel for few rows: activations and result in bfloat16."""
    held = layer._buffers  # a module's attributes are looked up slowly: a tenth of a small product
    weight, scale = held["weight"], held["scale"]
    assert weight is not None
    assert scale is not None
    return torch._weight_int8pack_mm(rows.bfloat16(), weight, scale.bfloat16())


def widened_product(layer: Int8Linear, rows: Tensor) -> Tensor:
    """By the integers in float32, made once for all rows."""
    return F.linear(rows.float(), layer.weight.float()).mul_(layer.scale)


def widened_product16(layer: Int8Linear, rows: Tensor) -> Tensor:
    """By the integers in bfloat16, which holds them exactly; activations and result are rounded to it."""
    return F.linear(rows.bfloat16(), layer.weight.bfloat16()).float().mul_(layer.scale)


def split_scaled(layer: Int8Linear, rows: Tensor) -> Tensor:
    """Activations in 16 bits, as two exact products of integers."""
    return split_product(rows, layer.weight).mul_(layer.scale)


def rounded_exactly(layer: Int8Linear, rows: Tensor) -> Tensor:
    """Activations in 8 bits, one exact product of integers."""
    scale = largest(rows).clamp_(min=1e-12).div_(127)
    rounded = rows.float().div(scale).round_().to(torch.int8)
    return torch._int_mm(rounded, layer.weight.t()).mul(layer.scale).mul_(scale)


def rounded_on_gpu(layer: Int8Linear, rows: Tensor) -> Tensor:
    """Activations in 8 bits, on a GPU."""
    scale = largest(rows).clamp_(min=1e-12).div_(127)
    product = _gpu_product(torch.div(rows, scale).round_(), layer.weight) * scale
    return torch.mul(product, layer.scale, out=torch.empty_like(product, dtype=rows.dtype))


@cache
def rounded_before(product: Product) -> Product:
    """Activations in 8 bits, then a product that takes any rows."""

    def rounded(layer: Int8Linear, rows: Tensor) -> Tensor:
        scale = largest(rows).clamp_(min=1e-12).div_(127)
        return torch.mul(product(layer, rows.float().div(scale).round_()), scale)

    return rounded


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


def scaled_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """``rows (n, in) @ (weight (out, in) * scale (out,)).T`` on a GPU, for weights of 8 bits: three kernels.

    A row in float16, which ends at 65504, is multiplied in bfloat16.
    """
    if rows.dtype == torch.float16:
        return F.linear(rows.bfloat16(), weight.bfloat16()) * scale
    return F.linear(rows, weight.to(rows.dtype)).mul_(scale)


def largest(rows: Tensor) -> Tensor:
    """The largest magnitude in each row, float32 ``(n, 1)``: one kernel on a GPU, which a CPU takes long for."""
    if rows.device.type == "cpu":
        return rows.abs().amax(dim=-1, keepdim=True).float()
    most: Tensor = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    return most


def split_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows (n, in) @ weight (out, in).T`` in float32, for int8 weights.

    A row is rounded to 16 bits, as 254 times one int8 number plus another, so that both products are exact integers.
    """
    coarse = rows.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12).div_(127)
    high = rows.float().div(coarse).round_()
    low = rows.float().sub(high * coarse).mul_(254 / coarse).round_()
    product = torch._int_mm(torch.cat([high, low]).to(torch.int8), weight.t()).float()
    return product[: rows.shape[0]].mul_(254).add_(product[rows.shape[0] :]).mul_(coarse / 254)


@cache
def exact_int8_products() -> bool:
    """Whether this CPU adds products of int8 numbers without overflow: older ones saturate at 16 bits."""
    for rows in (1, 32):  # few rows may have a kernel of their own
        for sign in (1, -1):
            most = torch.full((32, 64), 127, dtype=torch.int8)
            if not (torch._int_mm(most[:rows], (sign * most).t()) == sign * 64 * 127**2).all():
                return False
    return True


def _round_up_bfloat16(values: Tensor) -> Tensor:
    """The smallest bfloat16 numbers not below the (positive) float32 values, as float32."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


def _gpu_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows (n, in) @ weight (out, in).T`` of whole numbers, the rows in floating point.

    CUDA's kernel wants more than 16 rows and sizes that 8 divides: what is left over of the outputs is multiplied in
    floating point, for to fill up would copy the whole weight.
    """
    count, whole = len(rows), len(weight) - len(weight) % 8
    if rows.shape[1] % 8 or not whole or rows.device.type != "cuda":
        return F.linear(rows, weight.to(rows.dtype))
    filled = rows.new_empty(max(count, GPU_ROWS), rows.shape[1], dtype=torch.int8)  # of the rest nothing is read
    filled[:count] = rows
    product = torch._int_mm(filled, weight[:whole].t())[:count]
    if whole == len(weight):
        return product
    return torch.cat([product, F.linear(rows, weight[whole:].to(rows.dtype))], dim=1)
