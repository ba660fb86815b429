"""Half-quadratic quantization: zero points fitted so that most weights are hit closely and a few may be missed."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from workbench.layers.activations import LayerInput
from workbench.models.packed import stored_zero
from workbench.steps.quantize.rounding import Codes, Grid, GroupStep, in_groups, minmax_grid, round_to

POWER = 0.7  # of the error's norm: below 1, outliers count for little
STIFFNESS, GROWTH = 10.0, 1.01  # of the quadratic penalty, and its factor an iteration


class HQQ(GroupStep):
    """Fits the zero point of every group so that most weights are met closely, outliers less so.

    Needs no data: it models the weights' error, not the layer's. Seconds to apply. Mostly between plain rounding and
    the methods that calibrate; the gain shows at 4 bits and below.
    """

    paper: ClassVar[str] = "https://mobiusml.github.io/hqq_blog/"
    iterations: int = Field(default=20, ge=0, le=100, description="Rounds of the fit; 0 is plain rounding.")

    def quantize(self, weight: Tensor, inputs: LayerInput | None) -> Codes:
        """Round to the fitted grid."""
        grid = minmax_grid(weight, self.bits, self.group_size, self.symmetric)
        if not self.symmetric:
            grid = fit_zero(weight, grid, self.bits, self.group_size, self.iterations)
        return round_to(weight, grid, self.bits, self.group_size)


def fit_zero(weight: Tensor, grid: Grid, bits: int, group_size: int, iterations: int) -> Grid:
    """The grid with the zeros that minimize the error's p-norm, p = 0.7, over groups of a weight ``(out, in)``.

    Stops early when the mean error no longer falls. The zeros are fractions of a code.

    Source: Badri & Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023.
    """
    grouped = in_groups(weight, group_size)
    scale, zero = grid.scale.unsqueeze(-1), grid.zero.unsqueeze(-1)
    best, lowest, stiffness = zero, float("inf"), STIFFNESS
    for _ in range(iterations):
        codes = (grouped / scale + zero).round_().clamp_(0, 2**bits - 1)
        error = grouped - (codes - zero) * scale
        mean = float(error.abs().mean())
        if mean >= lowest:
            break
        best, lowest = zero, mean
        zero = (codes - (grouped - _shrink(error, stiffness)) / scale).mean(dim=-1, keepdim=True)
        stiffness *= GROWTH
    return Grid(grid.scale, stored_zero(best.squeeze(-1)))


def _shrink(error: Tensor, stiffness: float) -> Tensor:
    """Generalized soft threshold: what of an error is an outlier to be left alone."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(POWER - 1) / stiffness).clamp_(min=0)
