"""Output: when an answer ends, and what is made of it."""

from workbench.steps.output.stop import Stop  # isort: skip  # panels keep this order
from workbench.steps.output.cleaning import Clean, Extract  # isort: skip

__all__ = ["Clean", "Extract", "Stop"]
