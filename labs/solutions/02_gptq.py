"""Lab 2 solved: what replaces the cells of the notebook that have these names."""

# %% cell-03
guess = 200.0

# %% cell-05
from typing import ClassVar

import torch

from workbench.layers.step import inverse_factor
from workbench.steps.quantize.rounding import Codes, Grid, GroupStep, minmax_grid


class MyGPTQ(GroupStep):
    """Rounds weights column by column and corrects the columns to come for the error made.

    Needs the second moments of each layer's inputs, from a little calibration text; best at 4 bits and below.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2210.17323"
    needs_data: ClassVar[bool] = True
    hessians: ClassVar[bool] = True

    def correct(self, left, column, rounded, factor):
        error = (left[column] - rounded) / factor[column, column]
        left[column + 1 :] -= torch.outer(factor[column, column + 1 :], error)

    def quantize(self, weight, inputs):
        left = (weight * (inputs.hessian.diagonal() != 0)).t().clone()
        factor = inverse_factor(inputs.hessian)
        codes, grids = torch.empty_like(left, dtype=torch.uint8), []
        for column in range(len(left)):
            if column % self.group_size == 0:
                group = left[column : column + self.group_size].t()
                grids.append(minmax_grid(group, self.bits, self.group_size, self.symmetric))
            scale, zero = grids[-1].scale[:, 0], grids[-1].zero[:, 0]
            codes[column] = (left[column] / scale + zero).round().clamp(0, 2**self.bits - 1)
            self.correct(left, column, (codes[column] - zero) * scale, factor)
        grid = Grid(torch.cat([each.scale for each in grids], 1), torch.cat([each.zero for each in grids], 1))
        return Codes(codes.t().contiguous(), grid)


# %% cell-07
ablation = quantize.RTN(**settings)
