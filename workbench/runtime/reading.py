"""Prompts of a running batch while they are read: beside each other, or a long one in pieces."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from workbench.runtime.asks import Ask
from workbench.runtime.prefix import Prefix
from workbench.runtime.rows import Rows
from workbench.runtime.trial import way_of


class Reading:
    """Prompts read beside each other, or a long one in pieces, into a growing cache; equal ones are read once.

    Attributes:
        start: how many tokens of every row the prefix has.

    Args:
        model: a causal language model.
        asks: whose prompts.
        prefix: what every row begins with.
        left_out: how many of its tokens the prompts leave out.
        most: tokens of one prompt that are read at a time.
    """

    def __init__(
        self, model: PreTrainedModel, asks: Sequence[Ask], prefix: Prefix | None, left_out: int, most: int
    ) -> None:
        self.asks, self._most, self.start = asks, most, prefix.length if prefix else 0
        texts = [ask.text[self.start - left_out :] for ask in asks]
        unique = list(dict.fromkeys(texts))
        self._rows = [unique.index(text) for text in texts]
        pieces = [text[:most] for text in unique] if len(unique) == 1 else unique
        self._rest = unique[0][most:] if len(unique) == 1 else ()
        self._going, self._device = Rows(model, pieces, way_of(model), prefix), model.device

    @property
    def cache(self) -> DynamicCache:
        """Keys and values read so far."""
        found = self._going.cache
        assert isinstance(found, DynamicCache)
        return found

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of one token."""
        layers = [layer for layer in self.cache.layers if isinstance(layer, DynamicLayer)]
        return sum(each[0, :, 0].nbytes for layer in layers for each in (layer.keys, layer.values) if each is not None)

    def row(self, index: int) -> int:
        """Where in the cache an answer's prompt is."""
        return self._rows[index]

    def logits(self) -> Tensor | None:
        """Read a piece: logits ``(asks, vocabulary)``, of their own memory, with the last one; None before."""
        logits = self._going.logits()
        if not self._rest:
            return logits[self._rows]
        piece, self._rest = self._rest[: self._most], self._rest[self._most :]
        self._going.append(torch.tensor([piece], device=self._device))
        return None
