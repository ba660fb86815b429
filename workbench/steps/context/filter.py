"""Context without the sentences that say nothing new."""

import math
import re
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from workbench.answering.speaker import Speaker
from workbench.core.sentences import sentences
from workbench.retrieval.embedding import encoder
from workbench.steps.context.shortening import Shortening

LONGEST = 120  # characters of a sentence that may be a notice
# Notices wherever they stand, and what only the words of a menu are.
BOILERPLATE = re.compile(
    r"\b(?:all rights reserved|accept (?:all )?cookies|skip to (?:main )?content|back to top)\b"
    r"|^(?:©|subscribe to (?:our|the)\b|sign up for\b|click here\b|share this\b|follow us\b)"
    r"|^(?:terms of (?:use|service)|privacy policy|read more|log in|contact us)\W*$"
)


class Filter(Shortening):
    """Drops sentences that repeat others, that belong to a page and not to its text, or that are off the question.

    Retrieved passages overlap and pages carry menus; all of it is read for nothing. Repeats are safe to drop. What is
    off the question is judged by a small sentence encoder, which takes time of its own and can be wrong.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.04408"
    instant: ClassVar[bool] = False
    repeats: bool = Field(default=True, description="Drop sentences that were said before.")
    boilerplate: bool = Field(default=True, description="Drop menus, notices and the like.")
    keep: float = Field(
        default=1.0,
        ge=0.05,
        le=1.0,
        description="Share of the sentences that stay, those nearest to the question; 1 all.",
    )

    def shortened(self, texts: Sequence[str], question: str, variant: Speaker) -> list[str]:
        """Sentences are dropped over all documents together; those that stay keep their order."""
        rows = [(number, each) for number, text in enumerate(texts) for each in sentences(text)]
        seen: set[str] = set()
        stay = []
        for number, sentence in rows:
            words = " ".join(sentence.casefold().split())
            page = len(words) <= LONGEST and BOILERPLATE.search(words)
            dropped = (self.repeats and words in seen) or (self.boilerplate and page)
            if not dropped:
                stay.append((number, sentence))
            seen.add(words)
        if self.keep < 1.0 and stay and question.strip():
            near = encoder().vectors([each for _, each in stay]) @ encoder().question(question)
            best = set(near.argsort()[::-1][: math.ceil(self.keep * len(stay))].tolist())
            stay = [each for row, each in enumerate(stay) if row in best]
        return ["".join(each for at, each in stay if at == number).strip() for number in range(len(texts))]
