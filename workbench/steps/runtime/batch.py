"""Many answers decoded side by side."""

from typing import ClassVar

from pydantic import Field

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.batching import Batched
from workbench.runtime.engine import Eager
from workbench.step import Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


class Batch(Step):
    """Sets how many requests are decoded side by side, and how many may wait.

    A single answer reads all the weights for every token; several side by side read them once for all, so together they
    get several times the tokens per second until arithmetic, not memory, is the bound. A request joins between any two
    tokens and leaves when it ends, so nobody waits for the longest answer. It helps when requests come together, as
    with `agenerate` or in a comparison. It does not help one request alone, and each waits longer for its next token
    the more there are; every row also keeps keys and values of its own. The weights are shared with the parent.
    """

    paper: ClassVar[str] = "https://www.usenix.org/conference/osdi22/presentation/yu"
    caveat: ClassVar[str] = "not faster for one request: only those decoded side by side share the reading of weights"
    instant: ClassVar[bool] = True
    folded: ClassVar[tuple[str, ...]] = ("memory",)
    rows: int = Field(default=16, ge=1, le=1024, description="Requests decoded side by side at most.")
    waiting: int = Field(default=100, ge=0, le=100_000, description="Requests that may wait; further ones are refused.")
    memory: int = Field(
        default=0, ge=0, le=1_000_000, description="Megabytes for their keys and values; 0 for half of what is free."
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Change the engine only.

        Raises:
            InvalidInput: the variant is run by an engine that does not batch.
        """
        if type(variant.engine) not in (Eager, Batched):
            raise InvalidInput(f"'{variant.name}' is run by {variant.engine!r}: apply {self.label} to its parent.")
        bounds = {"rows": self.rows, "waiting": self.waiting, "memory": self.memory}
        engine = Batched(**(variant.engine.model_dump() | bounds))
        joins = engine.running(variant.model) is not None
        return variant.derive(self, engine=engine, notes=[] if joins else [APART])


APART = (
    "This variant's keys and values cannot be kept row by row: requests that come together take turns instead, and a "
    "batch of prompts waits for its longest answer."
)
