"""How a variant's model makes tokens and reads text, as a value that goes with the variant.

An engine is one way to run a model. `Eager` is the plain one; another is a class with the same two methods in a module
of its own. What is behind them (lock, memory guard, padding, caches, what prompts share) is nobody else's concern.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core import named
from workbench.core.progress import Progress
from workbench.runtime.decoding import Decoding, Follower, choose, draws, sample_seeds
from workbench.runtime.forward import memory_guard, using
from workbench.runtime.kvcache import FULL, PackedLayer, new_cache
from workbench.runtime.prefix import Prefix, shared_prefix
from workbench.runtime.reader import Reader, Span
from workbench.runtime.rows import Rows
from workbench.runtime.trial import way_of

ENGINES: dict[str, type["Engine"]] = {}
BATCH = {"cpu": 16, "cuda": 64}  # answers decoded together


class Engine(named.Named):
    """A way to run a model."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            named.register(ENGINES, cls)

    def fitted(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> "Engine":
        """This engine made ready for a model; asked whenever a variant gets another one, and when it is loaded.

        Raises:
            InvalidInput: it cannot run such a model.
            NotAvailable: what it needs is not on this machine.
        """
        return self

    def held_bytes(self, model: PreTrainedModel) -> int:
        """Memory it holds for a model from one answer to the next, beside the model's own tensors."""
        return 0

    def notes(self, row: Follower) -> tuple[str, ...]:
        """What should be known of how it decoded a row, in sentences."""
        return ()

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
        """Give every row its tokens, `settings.max_new_tokens` at most, until it wants no more; in any order.

        It pauses after every forward pass, so that the caller can report, cancel, or let another one have a turn.

        Args:
            model: a causal language model.
            prompts: token ids, of any lengths.
            settings: for all of them.
            rows: one for each prompt.
            samples: how many prompts, one after another, are those of one request, whose answers are drawn together.
            seeds: of each row's draw; by default, every request begins with that of the settings.
            label: whose or what work it is.

        Raises:
            OutOfMemory: the device has too little memory.
        """
        raise NotImplementedError

    def read(self, model: PreTrainedModel, spans: Sequence[Span], label: str = "Reading text") -> Reader:
        """What reads spans of text, some at a time.

        Args:
            model: a causal language model.
            spans: all that will be read: what they begin with in common is read once.
            label: whose or what work it is.

        Raises:
            OutOfMemory: the device has too little memory.
        """
        raise NotImplementedError


def _groups(requests: Sequence[int], size: int, lengths: Sequence[int] | None) -> Iterator[list[int]]:
    """Requests in batches of a size at most; with their lengths, those of one length only."""
    apart = [list(requests)]
    if lengths is not None:
        apart = [list(alike) for _, alike in groupby(requests, key=lengths.__getitem__)]
    for alike in apart:
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def _heard(tokens: Tensor, logits: Tensor | None) -> list[tuple[int, float | None]]:
    """Tokens ``(rows,)`` and how probable each was by its logits, in one copy: a GPU is waited for once a token."""
    if logits is None:
        return [(token, None) for token in tokens.tolist()]
    chances = torch.softmax(logits.float(), dim=-1).gather(-1, tokens[:, None])[:, 0]
    both = torch.stack([tokens.double(), chances.double()], dim=1).tolist()
    return [(int(token), chance) for token, chance in both]


class Eager(Engine):
    """Operation by operation, as transformers' own code says.

    Attributes:
        cache_bits: of every key and value kept of the tokens already read; 16 keeps them as the model computes them.
    """

    cache_bits: Literal[16, 8, 4] = FULL

    def packs(self, model: PreTrainedModel) -> bool:
        """Whether any layer of the model keeps keys and values that are packed."""
        way = way_of(model)
        layers = () if way.own or not way.state else new_cache(model.config, self.cache_bits).layers
        return any(isinstance(layer, PackedLayer) for layer in layers)

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
        """Batches of similar length; the tokens that all prompts begin with are read once."""
        seeds = seeds or sample_seeds(settings.seed, samples) * (len(prompts) // samples)
        way = way_of(model)
        with using(label):
            prefix = shared_prefix(model, prompts, self.cache_bits) if way.prefix else None
        start = prefix.length if prefix else 0
        requests = sorted(range(0, len(prompts), samples), key=lambda index: len(prompts[index]))
        size = max(1, BATCH.get(model.device.type, BATCH["cpu"]) // samples)
        for group in _groups(requests, size, None if way.padded else [len(each) for each in prompts]):
            batch = [index + sample for index in group for sample in range(samples)]
            rest, chosen = [prompts[index][start:] for index in batch], [rows[index] for index in batch]
            with memory_guard(label):  # what a batch held hangs on its frame, which has ended only out here
                yield from self._batch(model, prefix, rest, settings, chosen, [seeds[index] for index in batch], label)

    def _batch(
        self,
        model: PreTrainedModel,
        prefix: Prefix | None,
        prompts: Sequence[Sequence[int]],
        settings: Decoding,
        rows: Sequence[Follower],
        seeds: Sequence[int],
        label: str,
    ) -> Iterator[None]:
        """Rows decoded side by side until all have ended."""
        with using(label):
            going = self.open(model, prompts, settings.max_new_tokens, prefix)
        drawn, watched = draws(seeds), any(row.watches for row in rows)
        for _ in range(settings.max_new_tokens):
            with using(label):
                logits = going.logits()
                free = logits.clone() if watched else logits
                for row, each in zip(rows, logits, strict=True):
                    row.restrict(each)
                tokens = choose(logits, settings, drawn)
                for row, (token, chance) in zip(rows, _heard(tokens, free if watched else None), strict=True):
                    row.take(token, chance)
                going.append(tokens)
            yield
            if all(row.ended for row in rows):
                return

    def open(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, prefix: Prefix | None = None
    ) -> Rows:
        """Prompts to be read and continued by so many tokens at most; to be used within `using`."""
        return Rows(model, prompts, way_of(model), prefix, self.cache_bits)

    def read(self, model: PreTrainedModel, spans: Sequence[Span], label: str = "Reading text") -> Reader:
        """Keys and values are kept in as many bits as while answering."""
        return Reader(model, spans, self.cache_bits, label)
