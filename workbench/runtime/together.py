"""The engine of a model that several processes hold: they read together, and tokens are chosen here."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.runtime.decoding import Decoding, Follower, sample_seeds
from workbench.runtime.engine import Eager
from workbench.runtime.forward import memory_guard, using
from workbench.runtime.prefix import Prefix
from workbench.runtime.reader import Reader, Span
from workbench.runtime.rows import Rows, Way
from workbench.runtime.running import Running

READ = 2048  # tokens of a text that are read at a time

_numbers = itertools.count()


class Group(Protocol):
    """Processes that hold a part of a model each."""

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Have all of them do something together: ``step`` and ``read``, to which the first answers with logits."""


_groups: "WeakKeyDictionary[PreTrainedModel, tuple[Group, Way]]" = WeakKeyDictionary()
_going: "WeakKeyDictionary[Group, WeakSet[Together]]" = WeakKeyDictionary()


class Together(Rows):
    """Prompts that ranks read and go on with; what they keep of them goes when this goes, with their next step."""

    def __init__(self, group: Group, prompts: Sequence[Sequence[int]], way: Way) -> None:
        self._group, self._way, self._number = group, way, next(_numbers)
        self._tokens = [list(each) for each in prompts]
        _going.setdefault(group, WeakSet()).add(self)

    def logits(self) -> Tensor:
        """Of the next token of every row, ``(rows, vocabulary)``."""
        wanted = [each._number for each in _going[self._group]]
        return torch.from_numpy(self._group.ask("step", self._number, wanted, self._tokens, self._way)[0].copy())

    def append(self, tokens: Tensor) -> None:
        """Go on with a token ``(rows,)`` each."""
        self._tokens = tokens.reshape(len(tokens), -1).tolist()


class _Ranks(Eager):
    """A model that a group of processes runs, here only its outline without weights; no export can name it."""

    def running(
        self, model: PreTrainedModel, prefix: Prefix | None = None, label: str = "Answering", keeps: bool = False
    ) -> Running | None:
        """None: requests are decoded in turn."""
        return None

    def decode(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        settings: Decoding,
        rows: Sequence[Follower],
        samples: int = 1,
        seeds: Sequence[int] = (),
        label: str = "Answering",
    ) -> Iterator[None]:
        """Some rows side by side, those of like length together."""
        seeds = seeds or sample_seeds(settings.seed, samples) * (len(prompts) // samples)
        most = self.most_rows(model) if _groups[model][1].padded else 1
        turns = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for first in range(0, len(turns), most):
            turn = turns[first : first + most]
            chosen, drawn = [rows[index] for index in turn], [seeds[index] for index in turn]
            with memory_guard(label):
                yield from self._batch(model, None, [prompts[index] for index in turn], settings, chosen, drawn, label)

    def open(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, prefix: Prefix | None = None
    ) -> Rows:
        """Prompts to be read by all ranks."""
        return Together(_groups[model][0], prompts, _groups[model][1])

    def read(self, model: PreTrainedModel, spans: Sequence[Span], label: str = "Reading text") -> Reader:
        """One span after another; the first rank hands out logits."""
        return Reading(_groups[model][0], model.config.get_text_config().vocab_size, label)


class Reading(Reader):
    """Text read by all ranks, as a model that hands out logits does it."""

    def __init__(self, group: Group, vocabulary: int, label: str) -> None:
        self._group, self._label = group, label
        self.batch_tokens = self.batch_logits = READ
        self.rows_at_once = max(16, 25_000_000 // vocabulary)
        self.head = lambda states: states

    def states(self, spans: Sequence[Span]) -> Tensor:
        """Logits for every target token of every span, ``(target tokens of all, vocabulary)``."""
        with using(self._label):
            return torch.cat([read(self._group, span.ids, len(span.target)) for span in spans])


RANKS = _Ranks()


def put(model: PreTrainedModel, group: Group, way: Way) -> None:
    """Have a group run the model of an outline, in a way, as long as the outline lives."""
    _groups[model] = (group, way)


def read(group: Group, ids: Sequence[int], last: int | None = None) -> Tensor:
    """Logits ``(last, vocabulary)`` behind the last tokens, by default all of them; to be used within `using`."""
    return torch.from_numpy(group.ask("read", list(ids), last or len(ids))[0].copy())
