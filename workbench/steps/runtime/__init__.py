"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.batch import Batch

__all__ = ["Batch"]
