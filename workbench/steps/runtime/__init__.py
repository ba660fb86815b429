"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.offload import Offload

__all__ = ["Offload"]
