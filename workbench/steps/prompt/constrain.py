"""Answers of a given form, enforced while they are decoded."""

from functools import cached_property
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from workbench.answering import grammar
from workbench.answering.speaker import Speaker
from workbench.answering.stage import Stage
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.step import RequestStep
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

# Words are told apart as by Python and, where there are no spaces, about as in `workbench.core.words`: a character of
# Chinese or Japanese, up to four of Thai and its like.
SPACES, IDEOGRAPHS, SOUTH_EAST = (
    r"\s\x1c-\x1f",
    r"\p{Han}\p{Hiragana}\p{Katakana}",
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}",
)
WORD = rf"([{IDEOGRAPHS}]|[{SOUTH_EAST}]{{1,4}}|[^{SPACES}{IDEOGRAPHS}{SOUTH_EAST}]+)"


class Constrain(RequestStep):
    """Lets the model say only what fits a form: a JSON schema, a pattern, a list of choices, a number of words.

    Whatever does not fit cannot be chosen, so that an answer that comes to its end is valid, however small the model.
    Valid is not right: the form is enforced, the content is the model's. It holds for all that is said, the thoughts of
    `ChainOfThought` included. The masks cost next to no time.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2307.09702"
    model_config = ConfigDict(ignored_types=(cached_property,))
    form: Literal["json", "pattern", "choices", "words", "tokens"] = Field(
        default="json", description="What `rule` is: a JSON schema, a regular expression, choices, or a limit."
    )
    rule: str = Field(
        default='{"type": "object"}',
        max_length=50_000,
        description="The schema; the expression; one choice a line; or the most words or tokens.",
    )

    def model_post_init(self, context: object) -> None:
        """Refuse a rule that cannot be enforced before anything is asked."""
        if self.form in ("words", "tokens") and self._limit < 1:
            raise InvalidInput(f"The most {self.form} is a whole number from 1, not '{self.rule[:60]}'.")

    @property
    def _limit(self) -> int:
        return int(self.rule) if self.rule.strip().isdecimal() and len(self.rule) < 10 else 0

    @cached_property
    def _grammar(self) -> str | None:
        match self.form:
            case "json":
                return grammar.of_schema(self.rule)
            case "pattern":
                return grammar.of_pattern(self.rule)
            case "choices":
                return grammar.of_choices([each.strip() for each in self.rule.splitlines() if each.strip()])
            case "words":
                return grammar.of_pattern(f"{WORD}([{SPACES}]?{WORD}){{0,{self._limit - 1}}}")
        return None

    def grammar(self, variant: Speaker) -> str | None:
        """What answers must match."""
        return self._grammar

    @property
    def most_tokens(self) -> int | None:
        """The limit, if that is what the rule is."""
        return self._limit if self.form == "tokens" else None

    def stage(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Stage:
        """This, once it is sure that the rule can be enforced."""
        if found := self._grammar:
            grammar.guide(variant, found)
        return self
