"""Keys and values of earlier prompts and answers, kept for those that begin with the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from workbench.models.identity import marks
from workbench.runtime.kvcache import FULL
from workbench.runtime.prefix import SHORTEST, Prefix, common_length


@dataclass
class Entry:
    """A beginning, and its tokens as numbers that are compared quickly."""

    prefix: Prefix
    ids: NDArray[np.int64]


class Kept:
    """Beginnings that one model has read, the least recently used first.

    Attributes:
        asked: how many times a beginning was looked for.
        hits: how many times there was one.
        saved: tokens that were not read again.
        evicted: entries that had to go because the bytes were full.
    """

    def __init__(self) -> None:
        self.asked = self.hits = self.saved = self.evicted = 0
        self._entries: list[Entry] = []
        self._marks = 0

    @property
    def nbytes(self) -> int:
        """Held in keys and values."""
        return sum(each.prefix.nbytes for each in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return (
            f"<{len(self)} beginnings in {self.nbytes / 1e6:.1f} MB: {self.hits} of {self.asked} requests found one, "
            f"{self.saved} tokens not read again, {self.evicted} evicted>"
        )

    def follow(self, model: PreTrainedModel) -> None:
        """Forget everything if a weight of the model was replaced or written to."""
        now = marks(model)
        if now != self._marks:
            self._entries.clear()
        self._marks = now

    def longest(self, ids: Sequence[int]) -> Prefix | None:
        """The longest beginning of these tokens that is known; None where it is too short to be worth it."""
        wanted = np.array(ids, dtype=np.int64)
        lengths = [_alike(each.ids, wanted) for each in self._entries]
        best = max(lengths, default=0)
        self.asked += 1
        if best < SHORTEST:
            return None
        # Of several, the one used last: it keeps its place, and what they share with it.
        at = len(lengths) - 1 - lengths[::-1].index(best)
        self._entries.append(self._entries.pop(at))
        self.hits += 1
        self.saved += best
        return self._entries[-1].prefix.cut(best)

    def keep(self, prefix: Prefix, most_bytes: int) -> None:
        """Add a beginning; those that it goes on from are part of it, and the least recently used make room."""
        if not prefix.length:
            return
        fits = most_bytes * prefix.length // prefix.nbytes
        if fits < min(SHORTEST, prefix.length):
            return
        if fits < prefix.length:
            prefix = prefix.cut(fits).alone()
        new = Entry(prefix, np.array(prefix.ids, dtype=np.int64))
        alike = [_alike(each.ids, new.ids) for each in self._entries]
        covering = next((each for each, n in zip(self._entries, alike, strict=True) if n == len(new.ids)), new)
        parts = [each for each, n in zip(self._entries, alike, strict=True) if n == len(each.ids)]
        self._entries = [each for each in self._entries if each is not covering and each not in parts] + [covering]
        while self.nbytes > most_bytes:
            self._entries.pop(0)
            self.evicted += 1


def _alike(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many tokens two rows begin with in common."""
    most = min(len(a), len(b))
    different = np.flatnonzero(a[:most] != b[:most])
    return int(different[0]) if len(different) else most


_kept: "WeakKeyDictionary[PreTrainedModel, dict[int, Kept]]" = WeakKeyDictionary()


def kept(model: PreTrainedModel, cache_bits: int = FULL) -> Kept:
    """What a model has read, in so many bits; it goes when the model goes."""
    return _kept.setdefault(model, {}).setdefault(cache_bits, Kept())


def known_prefix(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], cache_bits: int, most_bytes: int
) -> Prefix | None:
    """What all prompts begin with, as far as it was read before; more of it is read now where several share more.

    At least one token of every prompt is left over.
    """
    found = kept(model, cache_bits)
    found.follow(model)
    if len(prompts) == 1:
        return found.longest(prompts[0][:-1])
    length = common_length(prompts, min(map(len, prompts)) - 1)
    known = found.longest(prompts[0][:length]) if length else None
    if length - (known.length if known else 0) < SHORTEST:
        return known
    made = Prefix(model, prompts[0][:length], cache_bits, known)
    found.keep(made, most_bytes)
    return made
