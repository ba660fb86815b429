"""Tokens that many rows begin with, read once; and rows of unequal length side by side."""

from collections.abc import Sequence
from copy import copy
from functools import partial

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from workbench.runtime.kvcache import FULL, is_plain, new_cache

SHORTEST = 8  # tokens; below this, reading them again is as fast


class Prefix:
    """Keys and values of tokens that many prompts begin with, computed once."""

    def __init__(self, model: PreTrainedModel, ids: Sequence[int], cache_bits: int = FULL) -> None:
        self.ids, self.length = tuple(ids), len(ids)
        self._cache = new_cache(model.config, cache_bits)
        self._empty = partial(new_cache, model.config, cache_bits)
        tokens = torch.tensor([list(ids)], device=model.device)
        model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def expand(self, batch: int) -> DynamicCache:
        """A cache for a batch that begins with the prefix; the stored tensors are shared, not written."""
        cache = self._empty()
        for index, layer in enumerate(self._cache.layers):
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                grown = copy(layer)  # appending binds new tensors to it
                grown.keys = layer.keys.expand(batch, -1, -1, -1)
                grown.values = layer.values.expand(batch, -1, -1, -1)
                cache.layers[index] = grown
        return cache


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
