"""What is made of an answer once it has ended."""

import re
from typing import ClassVar, Literal

from pydantic import Field

from workbench.answering.request import Generation
from workbench.core.errors import InvalidInput
from workbench.core.sentences import json_value, sentences
from workbench.step import RequestStep
from workbench.tasks.numbers import numbers

FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
FENCED = re.compile(r"```[\w-]*\n?((?:(?!```).)*)```", re.DOTALL)
QUOTES = ('""', "''", "``", "“”", "«»", "「」", "『』")
LEAD = re.compile(
    r"\A\s*(?:(?:sure|certainly|of course)[,!.]\s*)?"
    r"(?:(?:here (?:is|are)[^:\n]{0,80}|(?:the )?(?:final )?answer(?: is)?):\s*)?",
    re.IGNORECASE,
)


class Extract(RequestStep):
    """Takes the part of an answer that was asked for: a JSON value, a number, a line, a sentence, or code.

    The answer is judged, and handed on, without the talk around it. Nothing is decoded anew, so it costs nothing; where
    there is no such part, the answer stays whole and a note says so.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2205.11916"
    caveat: ClassVar[str] = "not faster: the answer is decoded before a part of it is taken"
    part: Literal["json", "number", "line", "sentence", "code"] = Field(
        default="line", description="The first JSON value, line, sentence or block of code; or the last number."
    )

    def finish(self, answers: list[Generation]) -> list[Generation]:
        """That part of each."""
        return [self._extracted(each) for each in answers]

    def _extracted(self, answer: Generation) -> Generation:
        found = _part(answer.text, self.part)
        if not found:
            return answer.but(notes=(*answer.notes, f"The answer has no {self.part}: it stays whole."))
        return answer.but(text=found)


class Clean(RequestStep):
    """Takes away what wraps an answer: polite openings, quotes, code fences, spaces.

    Costs nothing and often turns a right answer into one that an exact comparison accepts. It does not change what the
    answer says.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1606.05250"
    caveat: ClassVar[str] = "not faster: the answer is cleaned after it was decoded"
    opening: bool = Field(default=True, description="Drop openings such as 'Sure!' or 'The answer is:'.")
    fences: bool = Field(default=True, description="Take the text out of a code fence around it.")
    quotes: bool = Field(default=True, description="Drop a pair of quotes around it.")
    ending: bool = Field(default=False, description="Drop a full stop at its end.")

    def finish(self, answers: list[Generation]) -> list[Generation]:
        """Each of them, bare."""
        return [each.but(text=self._cleaned(each.text)) for each in answers]

    def _cleaned(self, text: str) -> str:
        text = text.strip()
        if self.opening and (found := LEAD.match(text)):
            text = text[found.end() :].strip() or text
        if self.fences and (found := FENCED.fullmatch(text)):
            text = found[1].strip()
        if self.quotes and text[:1] + text[-1:] in QUOTES and not set(text[1:-1]) & set(text[0] + text[-1]):
            text = text[1:-1].strip()
        return text[:-1] if self.ending and text.endswith((".", "。")) else text


def _part(text: str, part: str) -> str:
    match part:
        case "json":
            return text[json_value(text)]
        case "number":
            return (numbers(text) or [""])[-1]
        case "line":
            return next((line.strip() for line in text.splitlines() if line.strip()), "")
        case "sentence":
            return next((each.strip() for each in sentences(text) if each.strip()), "")
        case "code":
            found = FENCE.search(text)
            return found[1].strip() if found else ""
    raise InvalidInput(f"There is no part '{part}'.")
