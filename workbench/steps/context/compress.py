"""Context without the words that the model could have guessed."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from workbench.answering.speaker import Speaker
from workbench.core.words import words
from workbench.models.tokens import encode_text
from workbench.runtime.reader import Span
from workbench.steps.context.shortening import Shortening

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
        found = words(text)  # with the space before each, as in most vocabularies
        if len(found) < 2:
            return text
        told = information(found, variant)
        most = sorted(range(len(found)), key=lambda row: -told[row])[: math.ceil(self.ratio * len(found))]
        return "".join(found[row] for row in sorted(most)).strip()


def information(pieces: Sequence[str], variant: Speaker) -> list[float]:
    """Nats of each word's most surprising token, read in order and 512 tokens at a time."""
    encoded = [encode_text(variant.tokenizer, piece) for piece in pieces]
    flat = [(row, token) for row, ids in enumerate(encoded) for token in ids]
    told = [0.0] * len(pieces)
    size = min(WINDOW, variant.context_length)
    parts = [flat[start : start + size] for start in range(0, len(flat), size)]
    spans = [Span((part[0][1],), tuple(token for _, token in part[1:])) for part in parts if len(part) > 1]
    reader = variant.engine.read(variant.model, spans, variant.name) if spans else None
    for part in parts:
        told[part[0][0]] = math.inf  # nothing before it to guess it from
    for part, span in zip((each for each in parts if len(each) > 1), spans, strict=True):
        assert reader
        logs = reader.logs([span])
        nll = -logs.gather(-1, torch.tensor(span.target, device=logs.device)[:, None]).squeeze(-1)
        for (row, _), each in zip(part[1:], nll.tolist(), strict=True):
            told[row] = max(told[row], each)
    return told
