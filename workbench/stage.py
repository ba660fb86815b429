"""A stage works on what goes into a model or on what comes out of it; a request step puts one on a variant."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import InvalidInput
from workbench.step import Forecast, Step
from workbench.value import Value

if TYPE_CHECKING:
    from workbench.decoding import Decoding
    from workbench.progress import Progress
    from workbench.request import Generation, Request
    from workbench.task import Task, Text
    from workbench.variant import Variant

STAGES: dict[str, type["Stage"]] = {}


def _name(kind: type["Stage"]) -> str:
    return f"{kind.__module__.removeprefix('workbench.')}.{kind.__name__}"


class Stage(Value):
    """What a request passes on its way: in the order of the steps that made them, in and out."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        STAGES[_name(cls)] = cls

    def rewrite(self, request: "Request", variant: "Variant") -> "Request":
        """What is asked instead."""
        return request

    def decoding(self, settings: "Decoding") -> "Decoding":
        """How tokens are chosen instead."""
        return settings

    @property
    def most_tokens(self) -> int | None:
        """How long an answer may be at most, whatever the others say."""
        return None

    @property
    def samples(self) -> int:
        """How many answers are drawn for one."""
        return 1

    def grammar(self, variant: "Variant") -> str | None:
        """What an answer must match, as `workbench.grammar` writes it; None leaves it free."""
        return None

    def enough(self, text: str, chances: Sequence[float]) -> tuple[int, str] | None:
        """Whether an answer may end here: how many of its characters to keep, and why.

        Args:
            text: the answer so far.
            chances: probability of each of its tokens.
        """
        return None

    def finish(self, answers: "list[Generation]") -> "list[Generation]":
        """What is answered instead: the samples of one request, or fewer."""
        return answers


class RequestStep(Step, Stage):
    """A step that changes no weight: it is its own stage, or makes one from the task's examples."""

    caveat: ClassVar[str] = "not faster: the weights are the same"
    instant: ClassVar[bool] = True

    def apply(self, variant: "Variant", task: "Task | Text | None", progress: "Progress") -> "Variant":
        """Share every weight; only requests change."""
        return variant.derive(self, stage=self.stage(variant, task, progress))

    def forecast(self, variant: "Variant") -> Forecast:
        """No memory; how long it takes is known where it takes none."""
        return replace(super().forecast(variant), seconds=0.0 if self.instant else None)

    def stage(self, variant: "Variant", task: "Task | Text | None", progress: "Progress") -> Stage:
        """What requests pass from now on."""
        return self


def stage_to_json(stage: Stage) -> dict[str, Any]:
    """The stage's name and all it holds."""
    return {"stage": _name(type(stage)), **stage.model_dump(mode="json")}


def stage_from_json(record: dict[str, Any]) -> Stage:
    """The stage that `stage_to_json` wrote.

    Raises:
        InvalidInput: there is no such stage, or what it holds is out of range.
    """
    held = dict(record)
    name = held.pop("stage", None)
    if not isinstance(name, str) or name not in STAGES:
        raise InvalidInput(f"There is no request stage '{str(name)[:60]}': update the workbench.")
    return STAGES[name](**held)
