"""When an answer is enough."""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

from pydantic import Field

from workbench.core.sentences import json_value, sentences
from workbench.core.words import words
from workbench.step import RequestStep

LETTER = re.compile(r"[^\W\d_]")  # without one, a sentence is the number of a list, or empty
LONGEST = 1000  # characters at the end that are searched for repeats


class Stop(RequestStep):
    """Ends an answer as soon as it holds what was asked for, instead of waiting for the model to end it.

    Every token that is not decoded is time saved, and small models like to go on. It can only end an answer, never
    mend it; a condition that is met too early cuts something off.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1904.09751"
    caveat: ClassVar[str] = "no token is faster: answers are shorter"
    strings: str = Field(
        default="", max_length=5_000, description="Texts that end it and are cut off, one a line; \\n is a line break."
    )
    sentences: int = Field(default=0, ge=0, le=1_000, description="Whole sentences that are enough; 0 does not count.")
    marker: str = Field(
        default="",
        max_length=100,
        description="What stands before the answer, such as 'Answer:'; the line that follows it is enough.",
    )
    json_value: bool = Field(default=False, description="Enough when a JSON object or list is complete.")
    repeats: int = Field(
        default=0, ge=0, le=100, description="Times that the same words in a row end it, the repeats cut off; 0 never."
    )
    floor: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Ends it at a token that was less probable than this; 0 never."
    )

    def enough(self, text: str, chances: Sequence[float]) -> tuple[int, str] | None:
        """The first condition that is met."""
        for string in self.strings.splitlines():
            wanted = string.replace("\\n", "\n")
            if wanted and (at := text.find(wanted)) >= 0:
                return at, f"found {wanted!r}"
        if self.marker and (end := _answer_end(text, self.marker)):
            return end, "answer found"
        if self.json_value and (end := json_value(text).stop):
            return end, "JSON complete"
        if self.sentences:
            *whole, _ = accumulate(map(len, sentences(text)), initial=0)
            told = [end for end, each in zip(whole[1:], sentences(text), strict=False) if LETTER.search(each)]
            if len(told) >= self.sentences:
                return told[self.sentences - 1], f"{self.sentences} sentences"
        if self.repeats:
            found = words(text[-LONGEST:])
            if at := _repeated([each.strip() for each in found], self.repeats):
                return max(0, len(text) - LONGEST) + len("".join(found[:at]).rstrip()), "repeats itself"
        if self.floor and chances and chances[-1] < self.floor:
            return len(text), f"a token of probability {chances[-1]:.3f}"
        return None


def _answer_end(text: str, marker: str) -> int:
    """Where the line that follows the marker ends; 0 while it has not."""
    _, found, rest = text.partition(marker)
    line = rest.lstrip()
    end = line.find("\n")
    return len(text) - len(line) + end if found and end >= 0 else 0


def _repeated(said: list[str], times: int) -> int:
    """How many words stay when the end says the same `times` more in a row (at least 4 words); 0 if it does not."""
    for size in range(1, len(said) // (times + 1) + 1):
        last = said[-size:]
        count = 1
        while said[-size * (count + 1) : -size * count or None] == last:
            count += 1
        if count > times and size * count >= max(4, times + 1):
            return len(said) - size * (count - 1)
    return 0
