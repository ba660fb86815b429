"""Runtime: the same weights and answers, run in another way."""

from workbench.steps.runtime.auto import Auto  # isort: skip  # panels keep this order
from workbench.steps.runtime.compile import Compile  # isort: skip
from workbench.steps.runtime.llamacpp import LlamaCpp  # isort: skip
from workbench.steps.runtime.speculate import Speculate  # isort: skip
from workbench.steps.runtime.batch import Batch  # isort: skip
from workbench.steps.runtime.caches import PrefixCache, ResponseCache  # isort: skip
from workbench.steps.runtime.semantic import SemanticCache  # isort: skip
from workbench.steps.runtime.offload import Offload  # isort: skip

__all__ = [
    "Auto",
    "Batch",
    "Compile",
    "LlamaCpp",
    "Offload",
    "PrefixCache",
    "ResponseCache",
    "SemanticCache",
    "Speculate",
]
