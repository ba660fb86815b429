"""How a variant's model makes tokens and reads text, as a value that goes with the variant.

An engine is one way to run a model. `Eager` is the plain one; another is a class with the same two methods in a module
of its own. What is behind them (lock, memory guard, padding, caches, what prompts share) is nobody else's concern.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from workbench.core import named
from workbench.runtime.decoding import Decoding, Follower, choose, draws, sample_seeds
from workbench.runtime.forward import memory_guard, using
from workbench.runtime.kvcache import FULL, PackedLayer, new_cache
from workbench.runtime.prefix import Prefix, pad_left, shared_prefix
from workbench.runtime.reader import Reader, Span

ENGINES: dict[str, type["Engine"]] = {}
BATCH = {"cpu": 16, "cuda": 64}  # answers decoded together


class Engine(named.Named):
    """A way to run a model."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            named.register(ENGINES, cls)

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


class Eager(Engine):
    """Operation by operation, as transformers' own code says.

    Attributes:
        cache_bits: of every key and value kept of the tokens already read; 16 keeps them as the model computes them.
    """

    cache_bits: Literal[16, 8, 4] = FULL

    def packs(self, model: PreTrainedModel) -> bool:
        """Whether any layer of the model keeps keys and values that are packed."""
        return any(isinstance(layer, PackedLayer) for layer in new_cache(model.config, self.cache_bits).layers)

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
        with using(label):
            prefix = shared_prefix(model, prompts, self.cache_bits)
        start = prefix.length if prefix else 0
        requests = sorted(range(0, len(prompts), samples), key=lambda index: len(prompts[index]))
        size = max(1, BATCH.get(model.device.type, BATCH["cpu"]) // samples)
        for first in range(0, len(requests), size):
            batch = [index + sample for index in requests[first : first + size] for sample in range(samples)]
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
            ids, mask = pad_left(prompts, model.device)
            start = prefix.length if prefix else 0
            cache = prefix.expand(len(prompts)) if prefix else new_cache(model.config, self.cache_bits)
            mask = torch.cat([mask.new_ones(len(prompts), start), mask], dim=1)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
            padded = not bool(mask.all())
        drawn, watched = draws(seeds), any(row.watches for row in rows)
        for _ in range(settings.max_new_tokens):
            with using(label):
                logits = model(
                    input_ids=ids,
                    attention_mask=mask if padded else None,
                    position_ids=positions if padded else None,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                free = logits.clone() if watched else logits
                for row, each in zip(rows, logits, strict=True):
                    row.restrict(each)
                tokens = choose(logits, settings, drawn)
                told, chances = tokens, None
                if watched:
                    chances = torch.softmax(free.float(), dim=-1).gather(-1, tokens[:, None])[:, 0]
                    told = torch.stack([tokens.float(), chances], dim=-1)  # a GPU is waited for once
                for row, each in zip(rows, told.tolist(), strict=True):
                    row.take(*((int(each[0]), each[1]) if watched else (each, None)))
                ids = tokens[:, None]
                if padded:
                    mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
                    positions = positions[:, -1:] + 1
            yield
            if all(row.ended for row in rows):
                return

    def read(self, model: PreTrainedModel, spans: Sequence[Span], label: str = "Reading text") -> Reader:
        """Keys and values are kept in as many bits as while answering."""
        return Reader(model, spans, self.cache_bits, label)
