"""Eight-bit floating point with one scale an output row."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.device import device_failed
from workbench.models.packed.base import PackedLinear, fast_bfloat16

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
        fits = self.in_features % TILE == 0 and self.out_features % TILE == 0
        if rows.device.type == "cuda" and fits and multiplies_float8(rows.device):
            rounded, scale = to_float8(rows)
            return float8_product(rounded, self.weight).mul_(scale).mul_(self.scale)
        if rows.device.type != "cpu":
            wide = torch.bfloat16 if rows.dtype == torch.float16 else rows.dtype  # float16 ends at 65504
            return F.linear(rows.to(wide), self.weight.to(wide)).float().mul_(self.scale)
        kind = torch.bfloat16 if fast_bfloat16() else torch.float32
        return F.linear(rows.to(kind), to_bfloat16(self.weight).to(kind)).float().mul_(self.scale)


def to_float8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Float8 numbers ``(rows, columns)`` and the float32 scale ``(rows, 1)`` that brings each row to their range.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, https://arxiv.org/abs/2209.05433.
    """
    scale = values.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12).div_(LARGEST)
    return values.float().div(scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def to_bfloat16(values: Tensor) -> Tensor:
    """Finite float8 numbers in bfloat16, exact; torch converts them one by one on a CPU, 13 times slower.

    Sign, exponent and mantissa are moved to their place, then the exponents' biases, 7 and 127, are made up for.
    """
    bits = (values.view(torch.int8).to(torch.int16) << 4) & ~0x7800
    return bits.view(torch.bfloat16) * 2.0**120


def float8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows (n, in) @ weight (out, in).T`` of float8 numbers, in float32."""
    one = torch.ones((), device=rows.device)
    product: Tensor = torch._scaled_mm(rows, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
    return product


@cache
def multiplies_float8(device: torch.device) -> bool:
    """Whether a GPU has the product, tried once on a small one."""
    if torch.cuda.get_device_capability(device) < (8, 9):
        return False
    ones = torch.ones(TILE, TILE, device=device).to(torch.float8_e4m3fn)
    try:
        return bool((float8_product(ones[:1], ones) == TILE).all())
    except RuntimeError as error:  # not in this build of torch
        if device_failed(error):
            raise
        return False
