"""Feel what makes a language model fast and good: load, apply, measure, compare."""

from workbench import steps
from workbench.analysis.ablation import Ablation, ablate
from workbench.analysis.caches import Caches, caches
from workbench.analysis.diff import Diff, diff
from workbench.analysis.explain import Explanation, explain
from workbench.analysis.found import Search
from workbench.analysis.memory import Fit, Memory, fits, memory
from workbench.analysis.search import search
from workbench.analysis.space import free
from workbench.analysis.verification import Verification, verify_export
from workbench.answering.request import Generation, Piece
from workbench.core.errors import WorkbenchError
from workbench.core.estimate import Estimate
from workbench.core.jobs import Job, Worker
from workbench.core.progress import Progress
from workbench.layers.sensitivity import Sensitivity, sensitivity
from workbench.measurement.batching import Batching, batching
from workbench.measurement.comparison import Comparison, compare, measure
from workbench.measurement.history import History, history
from workbench.measurement.kernels import Kernels, kernels
from workbench.measurement.runs import Run, RunStore
from workbench.recipe import Recipe
from workbench.serving.deploy import Deployment, deploy
from workbench.serving.endpoint import Endpoint, connect
from workbench.serving.load import LoadTest, load_test
from workbench.serving.plan import Plan, plan
from workbench.serving.queueing import Load, forecast
from workbench.serving.service import Service, serve
from workbench.serving.shard import Sharded, shard
from workbench.serving.times import ServiceTimes
from workbench.step import Step
from workbench.tasks.benchmarks import read_benchmark, read_lm_eval
from workbench.tasks.sources import read_task, read_text
from workbench.tasks.task import Example, Task, Text
from workbench.teaching.check import check
from workbench.teaching.found import Check
from workbench.training.curve import Curve
from workbench.training.step import curve
from workbench.variant import Variant, load

__all__ = [
    "Ablation",
    "Batching",
    "Caches",
    "Check",
    "Comparison",
    "Curve",
    "Deployment",
    "Diff",
    "Endpoint",
    "Estimate",
    "Example",
    "Explanation",
    "Fit",
    "Generation",
    "History",
    "Job",
    "Kernels",
    "Load",
    "LoadTest",
    "Memory",
    "Piece",
    "Plan",
    "Progress",
    "Recipe",
    "Run",
    "RunStore",
    "Search",
    "Sensitivity",
    "Service",
    "ServiceTimes",
    "Sharded",
    "Step",
    "Task",
    "Text",
    "Variant",
    "Verification",
    "WorkbenchError",
    "Worker",
    "ablate",
    "batching",
    "caches",
    "check",
    "compare",
    "connect",
    "curve",
    "deploy",
    "diff",
    "explain",
    "fits",
    "forecast",
    "free",
    "history",
    "kernels",
    "load",
    "load_test",
    "measure",
    "memory",
    "plan",
    "read_benchmark",
    "read_lm_eval",
    "read_task",
    "read_text",
    "search",
    "sensitivity",
    "serve",
    "shard",
    "steps",
    "verify_export",
]
