"""Pruning: fewer weights."""

from workbench.steps.prune.masks import Magnitude, SparseGPT, Wanda  # isort: skip  # panels keep this order
from workbench.steps.prune.depth import DropBlocks  # isort: skip
from workbench.steps.prune.width import Width  # isort: skip
from workbench.steps.prune.vocabulary import Vocabulary  # isort: skip

__all__ = ["DropBlocks", "Magnitude", "SparseGPT", "Vocabulary", "Wanda", "Width"]
