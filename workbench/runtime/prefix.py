"""Tokens that many rows begin with, read once; and rows of unequal length side by side."""

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from workbench.runtime.kvcache import FULL, is_plain, new_cache

SHORTEST = 8  # tokens; below this, reading them again is as fast


class Prefix:
    """Keys and values of tokens that prompts begin with, computed once.

    Args:
        model: to be used within `using`.
        ids: the tokens.
        cache_bits: of every key and value kept.
        known: what is known of their beginning; only what follows is read.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Sequence[int], cache_bits: int = FULL, known: "Prefix | None" = None
    ) -> None:
        self.ids = tuple(ids)
        self._cache = known.expand(1) if known else new_cache(model.config, cache_bits)
        tokens = torch.tensor([self.ids[known.length if known else 0 :]], device=model.device)
        model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    @classmethod
    def of(cls, ids: Sequence[int], cache: DynamicCache) -> "Prefix":
        """What a cache holds of one row that began with these tokens; nobody may write into it any more."""
        made = cls.__new__(cls)
        made.ids, made._cache = tuple(ids), cache
        return made.cut(min(len(ids), cache.get_seq_length()))

    @property
    def length(self) -> int:
        """How many tokens."""
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Of the keys and values."""
        return sum(keys.nbytes + values.nbytes for _, keys, values in _filled(self._cache))

    def cut(self, length: int) -> "Prefix":
        """The first tokens of it; the tensors are shared."""
        made = copy(self)
        made.ids = self.ids[:length]
        return made

    def alone(self) -> "Prefix":
        """The same in memory of its own, so that what it was cut from can go."""
        made = copy(self)
        made._cache = self.expand(1)
        for layer, keys, values in _filled(made._cache):
            layer.keys, layer.values = keys.clone(), values.clone()
        return made

    def expand(self, batch: int) -> DynamicCache:
        """A cache for a batch that begins with the prefix; the stored tensors are shared, not written."""
        cache = copy(self._cache)
        cache.layers = [copy(layer) for layer in self._cache.layers]  # appending binds new tensors to a layer
        for layer, keys, values in _filled(cache):
            layer.keys = keys[:, :, : self.length].expand(batch, -1, -1, -1)
            layer.values = values[:, :, : self.length].expand(batch, -1, -1, -1)
        return cache


def _filled(cache: DynamicCache) -> Iterator[tuple[DynamicLayer, Tensor, Tensor]]:
    """The layers that have read something, their keys and values ``(rows, heads, tokens, numbers)``."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            yield layer, layer.keys, layer.values


def shared_prefix(model: PreTrainedModel, rows: Sequence[Sequence[int]], cache_bits: int = FULL) -> Prefix | None:
    """The tokens that all rows begin with, read once; None when too few to be worth it or the cache cannot be shared.

    At least one token of every row is left over.
    """
    length = common_length(rows, min(map(len, rows)) - 1)
    return Prefix(model, rows[0][:length], cache_bits) if length and is_plain(model.config) else None


def common_length(rows: Sequence[Sequence[int]], most: int) -> int:
    """How many tokens all rows begin with, up to a limit; 0 where that is too few to be worth reading them apart."""
    first = rows[0]
    found = next((at for at in range(most) if any(row[at] != first[at] for row in rows)), most)
    return found if len(rows) > 1 and found >= SHORTEST else 0


def common_cache(model: PreTrainedModel, ids: Tensor, rows: int) -> DynamicCache:
    """Keys and values of what all samples begin with ``(1, common)``, for every row; gradients pass through them."""
    cache = new_cache(model.config)
    body(model)(input_ids=ids, past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys, layer.values = (each.expand(rows, -1, -1, -1) for each in (layer.keys, layer.values))
    return cache


def body(model: PreTrainedModel) -> nn.Module:
    """Everything before the output head; Llama 4 does not name it as the others do."""
    whole: nn.Module = model.base_model
    return whole if whole is not model else getattr(model, "model", model)


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both ``(rows, longest)``, rows aligned at their end."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
