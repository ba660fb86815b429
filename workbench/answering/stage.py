"""A stage works on what goes into a model or on what comes out of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.answering.request import Generation, Prepared, Request
from workbench.answering.speaker import Speaker
from workbench.core import named
from workbench.runtime.decoding import Decoding

if TYPE_CHECKING:
    from workbench.answering.answers import Staged

STAGES: dict[str, type["Stage"]] = {}


class Stage(named.Named):
    """What a request passes on its way: in the order of the steps that made them, in and out."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            named.register(STAGES, cls)

    def rewrite(self, request: Request, variant: Speaker) -> Request:
        """What is asked instead."""
        return request

    def decoding(self, settings: Decoding) -> Decoding:
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

    def grammar(self, variant: Speaker) -> str | None:
        """What an answer must match, as `workbench.answering.grammar` writes it; None leaves it free."""
        return None

    def enough(self, text: str, chances: Sequence[float]) -> tuple[int, str] | None:
        """Whether an answer may end here: how many of its characters to keep, and why.

        Args:
            text: the answer so far.
            chances: probability of each of its tokens.
        """
        return None

    def finish(self, answers: list[Generation]) -> list[Generation]:
        """What is answered instead: the samples of one request, or fewer."""
        return answers

    def known(self, variant: "Staged", asked: Prepared, settings: Decoding) -> Generation | None:
        """The answer, if it is known before the model is asked; it passes no other stage.

        Args:
            variant: who is asked.
            asked: what, when every stage has worked on it.
            settings: with what the stages want.
        """
        return None

    def learn(self, variant: "Staged", asked: Prepared, settings: Decoding, answer: Generation) -> None:
        """Hear what was answered where nothing was known."""

    @property
    def reads(self) -> str:
        """Hash or version of what rewriting reads beside this value itself, such as an index; empty if nothing."""
        return ""


def overrides(stage: Stage, name: str) -> bool:
    """Whether a stage does something of its own in a method."""
    return getattr(type(stage), name) is not getattr(Stage, name)


def stage_to_json(stage: Stage) -> dict[str, Any]:
    """The stage's name and all it holds."""
    return named.to_json(stage, "stage")


def stage_from_json(record: dict[str, Any]) -> Stage:
    """The stage that `stage_to_json` wrote.

    Raises:
        InvalidInput: there is no such stage, or what it holds is out of range.
    """
    return named.from_json(STAGES, record, "stage")
