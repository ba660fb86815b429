"""Feel what makes a language model fast and good: load, apply, measure, compare."""

from workbench import steps
from workbench.errors import WorkbenchError
from workbench.progress import Progress
from workbench.step import Recipe, Step
from workbench.task import Task, Text, read_task, read_text
from workbench.variant import Variant, load

__all__ = ["Progress", "Recipe", "Step", "Task", "Text", "Variant", "WorkbenchError", "load", "read_task", "read_text", "steps"]
