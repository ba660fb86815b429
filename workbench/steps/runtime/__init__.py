"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.compile import Compile  # isort: skip  # panels keep this order

__all__ = ["Compile"]
