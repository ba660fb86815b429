"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.llamacpp import LlamaCpp

__all__ = ["LlamaCpp"]
