"""Token by token: the one loop that every answer, timing and score goes through."""

import threading
from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from workbench.kvcache import FULL, new_cache
from workbench.value import Value

# One forward at a time in the process: a variant's timing would be wrong, and a GPU's memory unpredictable, otherwise.
model_lock = threading.RLock()
SHORTEST_PREFIX = 8  # tokens; below this, reading them again is as fast


class Decoding(Value):
    """How tokens are chosen.

    Attributes:
        max_new_tokens: how long an answer may be.
        temperature: 0 takes the most likely token; higher values draw more freely.
        top_p: draw only from the most likely tokens that together have this probability.
        seed: of the draw; the same seed gives the same answer on the same device.
        cache_bits: of every key and value kept of the tokens already read; 16 keeps them as the model computes them.
    """

    max_new_tokens: int = Field(default=128, ge=1, le=100_000)
    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    cache_bits: Literal[16, 8, 4] = 16

    def but(self, **changes: Any) -> "Decoding":
        """These settings with some changed.

        Raises:
            InvalidInput: an unknown setting, or a value out of range.
        """
        return Decoding(**(self.model_dump() | changes))


class Follower(Protocol):
    """Has a say in the tokens of one answer."""

    @property
    def watches(self) -> bool:
        """Whether it wants to know how probable each token was."""

    def restrict(self, logits: Tensor) -> None:
        """Rule out tokens by setting their logits ``(vocabulary,)`` to minus infinity."""

    def take(self, token: int, chance: float | None = None) -> None:
        """Hear of the token that was chosen and, if it watches, how probable it was."""


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    prefix: "Prefix | None" = None,
    rows: Sequence[Follower] = (),
) -> Iterator[list[int]]:
    """Yield the next token of every prompt, `settings.max_new_tokens` times; the caller stops at end tokens.

    Args:
        model: a causal language model.
        prompts: token ids of each prompt, of any lengths; shorter ones are padded on the left.
        prefix: a key-value cache of tokens that all prompts begin with, made with the same `cache_bits`; the prompts
            then hold only the rest.
        rows: one for each prompt, if any.
    """
    device = model.device
    ids, mask = pad_left(prompts, device)
    start = prefix.length if prefix else 0
    cache = prefix.expand(len(prompts)) if prefix else new_cache(model.config, settings.cache_bits)
    mask = torch.cat([mask.new_ones(len(prompts), start), mask], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
    padded = not bool(mask.all())
    draw = torch.Generator(device=device).manual_seed(settings.seed)
    for _ in range(settings.max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=positions if padded else None,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        free = logits.clone() if any(row.watches for row in rows) else logits
        for row, each in zip(rows, logits, strict=False):
            row.restrict(each)
        tokens = choose(logits, settings, draw)
        chances = torch.softmax(free.float(), dim=-1).gather(-1, tokens[:, None])[:, 0] if free is not logits else None
        chosen = tokens.tolist()
        for index, row in enumerate(rows):
            row.take(chosen[index], None if chances is None else float(chances[index]))
        yield chosen
        ids = tokens[:, None]
        if padded:
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1


def choose(logits: Tensor, settings: Decoding, draw: torch.Generator) -> Tensor:
    """Next tokens ``(batch,)`` from logits ``(batch, vocabulary)``: greedy, or drawn from the top-p nucleus.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    chances = torch.softmax(logits.float() / settings.temperature, dim=-1)
    ranked, order = chances.sort(dim=-1, descending=True)
    ranked[ranked.cumsum(dim=-1) - ranked >= settings.top_p] = 0.0
    return order.gather(-1, torch.multinomial(ranked, 1, generator=draw)).squeeze(-1)


class Prefix:
    """Keys and values of tokens that many prompts begin with, computed once."""

    def __init__(self, model: PreTrainedModel, ids: Sequence[int], cache_bits: int = FULL) -> None:
        self.length = len(ids)
        self._cache = new_cache(model.config, cache_bits)
        self._empty = partial(new_cache, model.config, cache_bits)
        with torch.no_grad():
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
    length = min(len(row) for row in rows) - 1
    first = rows[0]
    while length and any(list(row[:length]) != list(first[:length]) for row in rows):
        length = next(i for i in range(length) if any(row[i] != first[i] for row in rows))
    # A sliding-window layer forgets its oldest keys, so only plain layers can be cut and continued anywhere.
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    return Prefix(model, first[:length], cache_bits) if plain and length >= SHORTEST_PREFIX and len(rows) > 1 else None


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both ``(rows, longest)``, rows aligned at their end."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
