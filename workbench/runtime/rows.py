"""Prompts side by side: read once, then continued token by token, as the architecture wants to be run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from workbench.runtime.kvcache import FULL, is_plain, new_cache
from workbench.runtime.prefix import Prefix, pad_left

KEYS_AND_VALUES: Final = "past_key_values"
STATES: Final = (KEYS_AND_VALUES, "cache_params", "state")  # names that architectures take what they keep under


@dataclass(frozen=True)
class Way:
    """How an architecture must be run to say what it says without any cache.

    Attributes:
        state: the name that it takes under what it keeps of the tokens already read; empty when it keeps nothing that
            can be handed on, and everything is read again for every token.
        own: whether the model makes its state itself; otherwise it takes a cache of keys and values made here.
        positions: whether it must be told every token's place, and not only where rows are padded.
        padded: whether rows of unequal length may stand side by side.
        prefix: whether what rows begin with may be read once for all.
        slots: whether its keys and values may be written in place, each row at its own (`Slots`).
        lean: whether a `LeanDecoder` may stand for its blocks.
    """

    state: str = KEYS_AND_VALUES
    own: bool = False
    positions: bool = False
    padded: bool = True
    prefix: bool = True
    slots: bool = False
    lean: bool = False


class Rows:
    """Prompts that a model reads at once and then goes on with; to be used within `using`.

    Args:
        model: a causal language model.
        prompts: token ids, of one length where the way takes no others.
        way: how the architecture is run.
        prefix: what all prompts begin with and leave out.
        cache_bits: of every key and value kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        way: Way,
        prefix: Prefix | None = None,
        cache_bits: int = FULL,
    ) -> None:
        self._model, self._way = model, way
        self._ids, mask = pad_left(prompts, model.device)
        start = prefix.length if prefix else 0
        mask = torch.cat([mask.new_ones(len(prompts), start), mask], dim=1)
        padded = len(set(map(len, prompts))) > 1
        self._mask = mask if padded else None
        self._positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:] if padded or way.positions else None
        self._state: Any = prefix.expand(len(prompts)) if prefix else None
        if way.state and not way.own and prefix is None:
            self._state = new_cache(model.config, cache_bits)

    def logits(self) -> Tensor:
        """Of the next token of every row, ``(rows, vocabulary)``."""
        return self._read(1)[:, -1]

    def ahead(self, tokens: Tensor) -> Tensor:
        """Read tokens ``(rows, more)`` that may come next, too; those that do not must be forgotten.

        Returns:
            Logits ``(rows, 1 + more, vocabulary)`` of the next token and of what follows each of these.
        """
        self.join(tokens)
        return self._read(1 + tokens.shape[1])[:, -1 - tokens.shape[1] :]

    def _read(self, last: int) -> Tensor:
        """Logits behind the last tokens of every row, ``(rows, last or more, vocabulary)``."""
        inputs: dict[str, Any] = {"input_ids": self._ids, "use_cache": bool(self._way.state), "logits_to_keep": last}
        told = {"attention_mask": self._mask, "position_ids": self._positions, self._way.state: self._state}
        inputs |= {name: value for name, value in told.items() if value is not None}
        out = self._model(**accepted(self._model, inputs))
        if self._way.own:
            self._state = getattr(out, self._way.state)
        logits: Tensor = out.logits
        return logits

    @property
    def cache(self) -> Any:
        """What is kept of the tokens read so far, as the way has it."""
        return self._state

    def append(self, tokens: Tensor) -> None:
        """Go on with a token ``(rows,)`` each, or with several ``(rows, tokens)``."""
        read = self._ids.shape[1] if self._way.state else 0
        self.join(tokens.reshape(len(tokens), -1))
        self._ids = self._ids[:, read:]
        if self._positions is not None:
            self._positions = self._positions[:, -self._ids.shape[1] :]

    def join(self, tokens: Tensor) -> None:
        """Put tokens ``(rows, more)`` behind those that are read next."""
        self._ids = torch.cat([self._ids, tokens], dim=1)
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(tokens.shape)], dim=1)
        if self._positions is not None:
            after = self._positions[:, -1:] + torch.arange(1, 1 + tokens.shape[1], device=tokens.device)
            self._positions = torch.cat([self._positions, after], dim=1)

    def forget(self, count: int) -> None:
        """Take back the last tokens that every row has read, where that is possible (`forgets`)."""
        if not count:
            return
        if isinstance(self._state, DynamicCache):
            self._state.crop(-count)
        if self._mask is not None:
            self._mask = self._mask[:, :-count]
        if self._positions is not None:
            kept = self._positions[:, :-count]
            self._positions = kept if kept.shape[1] else self._positions[:, -1:] - count
        self._ids = self._ids[:, :-count]

    def kept(self) -> DynamicCache | None:
        """Keys and values of a single row once it has ended, written by nobody any more; None where none can be had."""
        return self._state if isinstance(self._state, DynamicCache) and len(self._ids) == 1 else None


def forgets(model: PreTrainedModel, way: Way) -> bool:
    """Whether tokens that were read can be taken back: not out of a recurrence, nor once a sliding window moved on."""
    return not way.state or (not way.own and is_plain(model.config))


def accepted(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those inputs that a module's forward has a name for; some architectures know no positions, or no padding."""
    known = _names(type(module).forward)
    return inputs if known is None else {name: value for name, value in inputs.items() if name in known}


@cache
def _names(function: Callable[..., Any]) -> frozenset[str] | None:
    """Of what a function takes; None if it takes anything."""
    known = signature(function).parameters
    anything = any(each.kind is Parameter.VAR_KEYWORD for each in known.values())
    return None if anything else frozenset(known)
