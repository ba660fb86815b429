"""Feel what makes a language model fast and good: load, apply, measure, compare."""

from workbench import steps
from workbench.comparison import Comparison, compare, measure
from workbench.curve import Curve
from workbench.diff import Diff, diff
from workbench.errors import WorkbenchError
from workbench.estimate import Estimate
from workbench.jobs import Job, Worker
from workbench.progress import Progress
from workbench.reading import read_task, read_text
from workbench.request import Generation, Piece
from workbench.runs import Run, RunStore
from workbench.sensitivity import Sensitivity, sensitivity
from workbench.step import Recipe, Step
from workbench.task import Example, Task, Text
from workbench.training import curve
from workbench.variant import Variant, load
from workbench.verification import Verification, verify_export

__all__ = [
    "Comparison",
    "Curve",
    "Diff",
    "Estimate",
    "Example",
    "Generation",
    "Job",
    "Piece",
    "Progress",
    "Recipe",
    "Run",
    "RunStore",
    "Sensitivity",
    "Step",
    "Task",
    "Text",
    "Variant",
    "Verification",
    "WorkbenchError",
    "Worker",
    "compare",
    "curve",
    "diff",
    "load",
    "measure",
    "read_task",
    "read_text",
    "sensitivity",
    "steps",
    "verify_export",
]
