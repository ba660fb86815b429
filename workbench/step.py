"""A step is a frozen value that makes a new variant; a request step leaves the weights and changes what is asked."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from workbench.answering.stage import Stage
from workbench.core import named
from workbench.core.progress import Progress
from workbench.recipe import REGISTRY, RecipeStep
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


@dataclass(frozen=True)
class Forecast:
    """What applying a step is expected to cost, said before it is applied.

    Attributes:
        owned_bytes: memory the new variant will own beside what it shares.
        weight_bytes: all the weights it will use, shared ones included.
        seconds: time to apply, from a trial on one layer; None when unknown.
        token_ratio: how many times as long a token will take as with the variant, from a trial of the products on this
            machine; None when unknown.
    """

    owned_bytes: int
    weight_bytes: int
    seconds: float | None
    token_ratio: float | None = None


class Step(RecipeStep):
    """One optimization: its fields are its knobs, its docstring its explanation, `apply` its only verb.

    A concrete step names its `paper` (or reference) and, through its module, its family. Its `caveat` is the reason
    given when a measurement shows that it did not get faster. An `instant` one takes no longer than a token, so that a
    panel may try it out while a knob is moved. Knobs that are `folded` matter to few, and panels show them on request.
    One that `contends` only changes how a single request is computed, with the same tokens: `runtime.Auto` tries it.
    """

    paper: ClassVar[str] = ""
    instant: ClassVar[bool] = False
    contends: ClassVar[bool] = False
    folded: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.paper and not cls.__name__.startswith("_"):
            named.register(REGISTRY, cls)

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Make a new variant; the given one is left as it is."""
        raise NotImplementedError

    def forecast(self, variant: Variant) -> Forecast:
        """What applying this step to the variant would cost."""
        return Forecast(owned_bytes=0, weight_bytes=variant.total_bytes, seconds=0.0)

    def duration(self, variant: Variant, task: Task | Text) -> float | None:
        """Seconds that applying takes, where a forecast does not know them and a trial on the task does."""
        return None


class RequestStep(Step, Stage):
    """A step that changes no weight: it is its own stage, or makes one from the task's examples."""

    caveat: ClassVar[str] = "not faster: the weights are the same"
    instant: ClassVar[bool] = True

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Share every weight; only requests change."""
        return variant.derive(self, stage=self.stage(variant, task, progress))

    def forecast(self, variant: Variant) -> Forecast:
        """No memory; how long it takes is known where it takes none."""
        return replace(super().forecast(variant), seconds=0.0 if self.instant else None)

    def stage(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Stage:
        """What requests pass from now on."""
        return self
