"""Context without the words that the model could have guessed."""

import math
import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from workbench.answering.speaker import Speaker
from workbench.models.tokens import encode_text
from workbench.runtime.reader import Span
from workbench.steps.context.shortening import Shortening

WORD = re.compile(r"\s*\S+")  # a space belongs to the word behind it, as in most vocabularies
WINDOW = 512  # tokens read at a time


class Compress(Shortening):
    """Drops the words that the model itself finds easiest to guess from those before them.

    What can be guessed carries little information, so much of a text can go before its meaning does. The text is read
    once to find out, by the same model: that pays where a kept prefix or a dearer model profits from the shorter one.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.05736"
    instant: ClassVar[bool] = False
    caveat: ClassVar[str] = "not faster: the model reads the whole context once to find what it can drop"
    ratio: float = Field(default=0.5, ge=0.05, le=1.0, description="Share of the words that stay; 1 changes nothing.")

    def shortened(self, texts: Sequence[str], question: str, variant: Speaker) -> list[str]:
        """The same share of every document."""
        return [text if self.ratio == 1.0 else self._compressed(text, variant) for text in texts]

    def _compressed(self, text: str, variant: Speaker) -> str:
        words = WORD.findall(text)
        if len(words) < 2:
            return text
        told = information(words, variant)
        most = sorted(range(len(words)), key=lambda row: -told[row])[: math.ceil(self.ratio * len(words))]
        return "".join(words[row] for row in sorted(most)).strip()


def information(words: Sequence[str], variant: Speaker) -> list[float]:
    """Nats of each word's most surprising token, read in order and 512 tokens at a time."""
    pieces = [encode_text(variant.tokenizer, word) for word in words]
    flat = [(row, token) for row, piece in enumerate(pieces) for token in piece]
    told = [0.0] * len(words)
    size = min(WINDOW, variant.context_length)
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        if len(part) > 1:
            ids = [token for _, token in part]
            span = Span(tuple(ids[:1]), tuple(ids[1:]))
            logs = variant.engine.read(variant.model, [span], variant.name).logs([span])
            nll = (-logs.gather(-1, torch.tensor(ids[1:], device=logs.device)[:, None])).squeeze(-1).tolist()
        else:
            nll = []
        told[part[0][0]] = math.inf  # nothing before it to guess it from
        for (row, _), each in zip(part[1:], nll, strict=True):
            told[row] = max(told[row], each)
    return told
