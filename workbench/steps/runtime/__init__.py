"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.compile import Compile

__all__ = ["Compile"]
