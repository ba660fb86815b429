"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.caches import PrefixCache  # isort: skip  # panels keep this order

__all__ = ["PrefixCache"]
