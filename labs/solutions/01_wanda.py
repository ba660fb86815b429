"""Lab 1 solved: what replaces the cells of the notebook that have these names."""

# %% cell-03
guess = 60.0

# %% cell-05
from typing import ClassVar

import torch
from pydantic import Field

from workbench.layers.step import LayerStep
from workbench.steps.prune.masks import keep_mask


class MyWanda(LayerStep):
    """Sets to zero the weights that, times the size of their input, are smallest in each output row.

    A small weight on a large input can matter more than a large one on a small input. Takes a little calibration text.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.11695"
    needs_data: ClassVar[bool] = True
    sparsity: float = Field(default=0.5, ge=0.0, lt=1.0, description="Share of the weights set to zero.")

    def change(self, weight, inputs):
        score = weight.abs() * inputs.norm
        return weight * keep_mask(score, self.sparsity, group=0, rows=True)


# %% cell-07
class ByChance(MyWanda):
    """Sets weights to zero that are drawn by lot in each output row.

    It lacks the idea: as many weights go, but which ones has nothing to do with the model or the text.
    """

    def change(self, weight, inputs):
        lots = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
        return weight * keep_mask(lots.to(weight.device), self.sparsity, group=0, rows=True)
