"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.speculate import Speculate

__all__ = ["Speculate"]
