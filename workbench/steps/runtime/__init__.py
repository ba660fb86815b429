"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.auto import Auto  # isort: skip  # panels keep this order

__all__ = ["Auto"]
