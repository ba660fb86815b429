"""Eight-bit floating point with one scale an output row."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.device import device_failed
from workbench.models.packed.base import PackedLinear, fast_bfloat16
from workbench.models.packed.int8 import largest, scaled_product
from workbench.models.packed.products import Product

LARGEST = torch.finfo(torch.float8_e4m3fn).max
TILE = 16  # rows and columns of a weight that the GPU kernel takes at a time


class FP8Linear(PackedLinear):
    """Float8 weights (e4m3: sign, 4 bits exponent, 3 bits mantissa), one scale an output row.

    A CUDA GPU of compute capability 8.9 or above multiplies float8 by float8, each token's activations rounded with a
    scale of their own. Everywhere else the weight is unpacked for every product: smaller, but not faster.
    """

    weight: Tensor
    scale: Tensor
    bits = 8

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        rounded, scale = to_float8(weight.detach())
        return {"weight": rounded, "scale": scale.squeeze(1)}

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale.unsqueeze(1)

    def multiply(self, rows: Tensor) -> Tensor:
        if rows.device.type == "cpu":
            return super().multiply(rows)
        fits = self.in_features % TILE == 0 and self.out_features % TILE == 0
        half = rows.dtype != torch.float32  # the kernel's result is in 16 bits
        if rows.device.type == "cuda" and half and fits and multiplies_float8(rows.device):
            rounded, scale = to_float8(rows)
            return float8_product(rounded, self.weight, scale, self.scale)
        return scaled_product(rows, self.weight, self.scale)

    def products(self, rows: int) -> Mapping[str, Product]:
        """On a CPU: by the weight widened, in float32 or bfloat16."""
        found: dict[str, Product] = {"widened to float32": widened_product}
        return found | ({"widened to bfloat16": widened_product16} if fast_bfloat16() else {})


def widened_product(layer: FP8Linear, rows: Tensor) -> Tensor:
    """In float32."""
    return F.linear(rows.float(), to_bfloat16(layer.weight).float()).mul_(layer.scale)


def widened_product16(layer: FP8Linear, rows: Tensor) -> Tensor:
    """Activations and result in bfloat16, which holds the weight exactly."""
    return F.linear(rows.bfloat16(), to_bfloat16(layer.weight)).float().mul_(layer.scale)


def to_float8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Float8 numbers ``(rows, columns)`` and the float32 scale ``(rows, 1)`` that brings each row to their range.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, https://arxiv.org/abs/2209.05433.
    """
    scale = largest(values).clamp_(min=1e-12).div_(LARGEST)
    return torch.div(values, scale).to(torch.float8_e4m3fn), scale  # up to 464 is rounded to the largest, 448


def to_bfloat16(values: Tensor) -> Tensor:
    """Finite float8 numbers in bfloat16, exact; torch converts them one by one on a CPU, 13 times slower.

    Sign, exponent and mantissa are moved to their place, then the exponents' biases, 7 and 127, are made up for.
    """
    bits = (values.view(torch.int8).to(torch.int16) << 4) & ~0x7800
    return bits.view(torch.bfloat16) * 2.0**120


def float8_product(rows: Tensor, weight: Tensor, scale: Tensor, outputs: Tensor) -> Tensor:
    """``rows (n, in) @ weight (out, in).T`` of float8 numbers, scaled by ``(n, 1)`` and ``(out,)``, in bfloat16."""
    product: Tensor = torch._scaled_mm(
        rows, weight.t(), scale_a=scale, scale_b=outputs.unsqueeze(0), out_dtype=torch.bfloat16
    )
    return product


@cache
def multiplies_float8(device: torch.device) -> bool:
    """Whether a GPU has the product, tried once on a small one."""
    if torch.cuda.get_device_capability(device) < (8, 9):
        return False
    ones, scale = torch.ones(TILE, TILE, device=device).to(torch.float8_e4m3fn), torch.full((TILE,), 2.0, device=device)
    try:
        return bool((float8_product(ones, ones, scale.unsqueeze(1), scale) == 4 * TILE).all())
    except RuntimeError as error:  # not in this build of torch
        if device_failed(error):
            raise
        return False
