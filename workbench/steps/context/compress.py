"""Context without the words that the model could have guessed."""

import math
import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from workbench.decoding import model_lock
from workbench.prompting import encode_text
from workbench.shortening import Shortening
from workbench.variant import Variant

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

    def shortened(self, texts: Sequence[str], question: str, variant: Variant) -> list[str]:
        """The same share of every document."""
        return [text if self.ratio == 1.0 else self._compressed(text, variant) for text in texts]

    def _compressed(self, text: str, variant: Variant) -> str:
        words = WORD.findall(text)
        if len(words) < 2:
            return text
        told = information(words, variant)
        most = sorted(range(len(words)), key=lambda row: -told[row])[: math.ceil(self.ratio * len(words))]
        return "".join(words[row] for row in sorted(most)).strip()


def information(words: Sequence[str], variant: Variant) -> list[float]:
    """Nats of each word's most surprising token, read in order and 512 tokens at a time."""
    pieces = [encode_text(variant.tokenizer, word) for word in words]
    flat = [(row, token) for row, piece in enumerate(pieces) for token in piece]
    told = [0.0] * len(words)
    size = min(WINDOW, variant.context_length)
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        ids = torch.tensor([[token for _, token in part]], device=variant.device)
        with model_lock, torch.no_grad():
            logits = variant.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
        told[part[0][0]] = math.inf  # nothing before it to guess it from
        for (row, _), each in zip(part[1:], nll, strict=True):
            told[row] = max(told[row], each)
    return told
