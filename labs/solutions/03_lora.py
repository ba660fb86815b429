"""Lab 3 solved: what replaces the cells of the notebook that have these names."""

# %% cell-03
guess = 50.0

# %% cell-05
from typing import ClassVar

import torch

from workbench.teaching.lora import LoRAParts


class MyLoRA(LoRAParts):
    """Trains two thin matrices beside every linear layer; the layer itself stays as it is.

    Their product counts alpha / rank times. At the start the second is zero, so that nothing has changed yet.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"

    def start(self, out):
        return torch.zeros(out, self.rank)

    def product(self, x, weight, a, b):
        return x @ weight.T + self.alpha / self.rank * (x @ a.T) @ b.T


# %% cell-07
ablation = MyLoRA(rank=1, alpha=2.0, **settings)
