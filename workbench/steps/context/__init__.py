"""Context: less to read before the answer."""

from workbench.steps.context.truncate import Truncate  # isort: skip  # panels keep this order
from workbench.steps.context.filter import Filter  # isort: skip
from workbench.steps.context.compress import Compress  # isort: skip

__all__ = ["Compress", "Filter", "Truncate"]
