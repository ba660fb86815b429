"""How a variant's model makes tokens and reads text, as a value that goes with the variant.

An engine is one way to run a model. `Eager` is the plain one; another is a class with the same two methods in a module
of its own. What is behind them (lock, memory guard, padding, caches, what prompts share) is nobody else's concern.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core import named
from workbench.core.progress import Progress
from workbench.runtime.asks import Ask
from workbench.runtime.decoding import Decoding, Follower, choose, draws, heard, sample_seeds
from workbench.runtime.footprint import rows_that_fit
from workbench.runtime.forward import memory_guard, using
from workbench.runtime.kept import kept, known_prefix
from workbench.runtime.kernels import quickened
from workbench.runtime.kvcache import FULL, PackedLayer, new_cache
from workbench.runtime.prefix import Prefix, shared_prefix
from workbench.runtime.reader import Reader, Span
from workbench.runtime.room import free_bytes
from workbench.runtime.rows import Rows
from workbench.runtime.running import Running
from workbench.runtime.trial import way_of

ENGINES: dict[str, type["Engine"]] = {}
Starts = Literal["operations", "graph", "elsewhere"]  # elsewhere: by code that is not torch's
BATCH = {"cpu": 16, "cuda": 64}  # answers decoded together
WAITING = 100


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

    def remarks(self, model: PreTrainedModel) -> tuple[str, ...]:
        """What should be known of how it runs a model, once it is ready for it, in sentences.

        They stand among the notes of a variant until it gets another model or engine.
        """
        return ()

    def starts(self, model: PreTrainedModel, rows: int) -> Starts:
        """How a pass of so many rows begins its work; what explains a speed asks."""
        return "elsewhere"

    def held_bytes(self, model: PreTrainedModel) -> int:
        """Memory it holds for a model from one answer to the next, beside the model's own tensors."""
        return 0

    def most_rows(self, model: PreTrainedModel) -> int:
        """Answers that go on at once: decoded together, or in turn."""
        return BATCH.get(model.device.type, BATCH["cpu"])

    def most_waiting(self) -> int:
        """Requests that may wait behind them; further ones are refused."""
        return WAITING

    def running(
        self, model: PreTrainedModel, prefix: Prefix | None = None, label: str = "Answering", keeps: bool = False
    ) -> Running | None:
        """A batch that answers may join and leave while others go on; None if this engine has none for such a model.

        Args:
            model: a causal language model.
            prefix: what all prompts begin with and leave out.
            label: whose or what work it is.
            keeps: whether what is read is kept for later requests, if the engine keeps any; a batch of many prompts
                that come once would push out everything else.
        """
        return None

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


def _joined(running: Running, asks: Sequence[Ask]) -> Iterator[None]:
    """Decode answers in a batch of their own."""
    running.join(asks)
    while True:
        for ask in asks:
            if ask.error:
                try:
                    raise ask.error
                finally:
                    ask.error = None  # an error that held itself would keep all of this in memory
        if not running.busy:
            return
        running.step()
        yield


class Eager(Engine):
    """Operation by operation, as transformers' own code says.

    Attributes:
        cache_bits: of every key and value kept of the tokens already read; 16 keeps them as the model computes them.
        prefix_bytes: most that keys and values of earlier prompts and answers may take, for those that begin alike.
    """

    cache_bits: Literal[16, 8, 4] = FULL
    prefix_bytes: int = Field(default=0, ge=0, lt=1 << 50)

    def held_bytes(self, model: PreTrainedModel) -> int:
        """Of what was read before."""
        return kept(model, self.cache_bits).nbytes if self.prefix_bytes else 0

    def starts(self, model: PreTrainedModel, rows: int) -> Starts:
        """From here, one operation after another."""
        return "operations"

    def packs(self, model: PreTrainedModel) -> bool:
        """Whether any layer of the model keeps keys and values that are packed."""
        way = way_of(model)
        layers = () if way.own or not way.state else new_cache(model.config, self.cache_bits).layers
        return any(isinstance(layer, PackedLayer) for layer in layers)

    def running(
        self, model: PreTrainedModel, prefix: Prefix | None = None, label: str = "Answering", keeps: bool = False
    ) -> Running | None:
        """Of as many rows as are decoded together; engines that run a single row in another way share it."""
        if self.cache_bits < FULL or not way_of(model).slots:
            return None
        kept_bytes = self.prefix_bytes if keeps and way_of(model).prefix else 0
        return Running(model, self.most_rows(model), self.most_bytes(model), prefix, label, kept_bytes)

    def most_bytes(self, model: PreTrainedModel) -> int:
        """Bound on the keys and values of a batch that runs: half of what is free."""
        return free_bytes(model.device).free // 2

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
        """Shorter prompts first; one takes the place of another that has ended, or else they are decoded in groups.

        The tokens that all prompts begin with are read once.
        """
        seeds = seeds or sample_seeds(settings.seed, samples) * (len(prompts) // samples)
        way = way_of(model)
        with using(label):
            prefix = self._beginning(model, prompts) if way.prefix else None
        start = prefix.length if prefix else 0
        requests = sorted(range(0, len(prompts), samples), key=lambda index: len(prompts[index]))
        if len(prompts) > 1 and (running := self.running(model, prefix, label)):
            turns = [index + sample for index in requests for sample in range(samples)]
            with memory_guard(label):
                yield from _joined(
                    running, [Ask(prompts[turn][start:], settings, rows[turn], seeds[turn]) for turn in turns]
                )
            return
        size = max(1, self.most_rows(model) // samples)
        longest = max(map(len, prompts), default=0) + settings.max_new_tokens
        size = max(1, rows_that_fit(model, size * samples, longest, self.cache_bits) // samples)
        for group in _groups(requests, size, None if way.padded else [len(each) for each in prompts]):
            batch = [index + sample for index in group for sample in range(samples)]
            rest, chosen = [prompts[index][start:] for index in batch], [rows[index] for index in batch]
            with memory_guard(label):  # what a batch held hangs on its frame, which has ended only out here
                yield from self._batch(model, prefix, rest, settings, chosen, [seeds[index] for index in batch], label)

    def _beginning(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Prefix | None:
        """What all prompts begin with, if that is worth reading apart or was read before."""
        if not self.prefix_bytes:
            return shared_prefix(model, prompts, self.cache_bits)
        return known_prefix(model, prompts, self.cache_bits, self.prefix_bytes)

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
        ids = [*(prefix.ids if prefix else ()), *prompts[0]]
        for left in reversed(range(settings.max_new_tokens)):
            with using(label):
                logits = going.logits()
                free = logits.clone() if watched else logits
                for row, each in zip(rows, logits, strict=True):
                    row.restrict(each)
                tokens = choose(logits, settings, drawn)
                said = heard(tokens, free if watched else None)
                for row, (token, chance) in zip(rows, said, strict=True):
                    row.take(token, chance)
                going.append(tokens)
                ids.append(said[0][0])
                over = not left or all(row.ended for row in rows)
                if over and self.prefix_bytes:  # now, for whoever has the whole answer does not come back
                    self._keep(model, ids, going)
            yield
            if over:
                return

    def _keep(self, model: PreTrainedModel, ids: Sequence[int], rows: Rows) -> None:
        """Keep what a single row has read of its prompt and answer; many would push out everything else."""
        found = rows.kept() if way_of(model).prefix else None
        if found is not None:
            kept(model, self.cache_bits).keep(Prefix.of(ids, found), self.prefix_bytes)

    def open(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, prefix: Prefix | None = None
    ) -> Rows:
        """Prompts to be read and continued by so many tokens at most; to be used within `using`."""
        return Rows(quickened(model), prompts, way_of(model), prefix, self.cache_bits)

    def read(self, model: PreTrainedModel, spans: Sequence[Span], label: str = "Reading text") -> Reader:
        """Keys and values are kept in as many bits as while answering."""
        return Reader(model, spans, self.cache_bits, label)
