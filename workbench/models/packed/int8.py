"""Eight bits with one scale an output row, multiplied by torch's own kernels."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.models.packed.base import FEW_ROWS, Packed, PackedLinear, fast_bfloat16

KERNEL_COLUMNS = 32  # torch's int8 weight kernel reads whole blocks of columns, past the end of others
SPLIT_ROWS = range(5, FEW_ROWS + 1)  # where splitting activations in two is the fastest: 1.2 to 1.5 times on a Zen 4
WIDE = 16  # outputs an input from which on splitting costs next to nothing: an output head


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

    def multiply(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu":
            return scaled_product(rows, self.weight, self.scale)
        wide = self.out_features >= WIDE * self.in_features
        if (wide or rows.shape[0] in SPLIT_ROWS) and exact_int8_products():
            return split_product(rows, self.weight).mul_(self.scale)
        return self._in_floats(rows)

    def _in_floats(self, rows: Tensor) -> Tensor:
        """``rows (n, in) -> (n, out)`` on a CPU, the integers widened; few rows are multiplied straight from them."""
        if rows.shape[0] <= FEW_ROWS and self.in_features % KERNEL_COLUMNS == 0:
            ones = self.scale.to(torch.bfloat16)
            return torch._weight_int8pack_mm(rows.to(torch.bfloat16), self.weight, ones)
        kind = torch.bfloat16 if fast_bfloat16() else torch.float32
        return F.linear(rows.to(kind), self.weight.to(kind)).float().mul_(self.scale)


class Int8DynamicLinear(Int8Linear):
    """Int8 weights and int8 activations, the activation's scale taken from each token as it comes (W8A8).

    Where a CPU's integer products overflow, the same integers are multiplied in floating point.
    """

    def multiply(self, rows: Tensor) -> Tensor:
        scale = largest(rows).clamp_(min=1e-12).div_(127)
        if rows.device.type != "cpu":
            product = _gpu_product(torch.div(rows, scale).round_(), self.weight) * scale
            return torch.mul(product, self.scale, out=torch.empty_like(product, dtype=rows.dtype))
        rounded = rows.float().div(scale).round_()
        if not exact_int8_products():
            return self._in_floats(rounded).float().mul_(scale)
        return torch._int_mm(rounded.to(torch.int8), self.weight.t()).float().mul_(scale).mul_(self.scale)


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
    """Whether this CPU adds products of int8 numbers without overflow, and fast: older ones saturate at 16 bits."""
    if not torch.cpu._is_vnni_supported():
        return False
    most = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(most, most.t()) == 64 * 127**2).all())


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
    filled = rows.new_empty(max(count, FEW_ROWS + 1), rows.shape[1], dtype=torch.int8)  # of the rest nothing is read
    filled[:count] = rows
    product = torch._int_mm(filled, weight[:whole].t())[:count]
    if whole == len(weight):
        return product
    return torch.cat([product, F.linear(rows, weight[whole:].to(rows.dtype))], dim=1)
