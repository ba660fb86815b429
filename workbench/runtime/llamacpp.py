"""The engine llama.cpp: a variant's weights as a GGUF file, run in this process by code made for CPUs."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core.errors import InvalidInput, NotAvailable
from workbench.core.progress import Progress
from workbench.models.packed import Packed
from workbench.runtime import llama_files
from workbench.runtime.decoding import Decoding, Follower, choose, draws, sample_seeds
from workbench.runtime.engine import Eager, Engine
from workbench.runtime.forward import using
from workbench.runtime.llama_library import CHUNK, Context, Loaded
from workbench.runtime.prefix import SHORTEST
from workbench.runtime.reader import Reader, Span
from workbench.runtime.trial import some_tokens

Form = Literal["as it is", "F32", "F16", "BF16", "Q8_0", "Q4_0"]
ROWS = 16  # answers decoded side by side
STEP = 256  # tokens by which a context grows
TRIED = 24  # tokens that are compared before it is used
APART, ROUNDED_APART = 0.05, 0.3  # of its logits from ours, relative: with dense weights, and with rounded ones
READ = "Likelihoods (perplexity, divergence) are those of the plain engine on the same weights, not of llama.cpp."
PASSES = 3  # in which a number of threads is timed


@dataclass
class _Held:
    """What is in memory for a model: it goes when the model goes."""

    loaded: Loaded
    notes: tuple[str, ...]
    bytes: int
    form: str
    threads: int = 0
    spare: list[Context] = field(default_factory=list)


_held: "WeakKeyDictionary[PreTrainedModel, _Held]" = WeakKeyDictionary()


class LlamaCpp(Engine):
    """The model as a GGUF file in llama.cpp, each token chosen here from its logits.

    So sampling, seeds, constraints and stops are the same as with any engine. Text is read (perplexity, divergence) by
    the plain engine, on the weights as the variant holds them. Prompts that are asked together and begin alike have
    that beginning read once; from one question to the next nothing is kept.

    Attributes:
        form: what weights are written in.
        threads: of the CPU; 0 tries how many are fastest.
    """

    form: Form = "as it is"
    threads: int = Field(default=0, ge=0, le=1024)

    def fitted(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> "LlamaCpp":
        """Write the file if it is not in the cache, open it, and see that it says what the model says."""
        if model.device.type != "cpu":
            raise InvalidInput(
                "llama.cpp runs on the CPU here: load the model with device='cpu', or use another engine."
            )
        known = _held.get(model)
        if known is not None and known.form == self.form:
            return self
        path, notes = llama_files.find(model, tokenizer, "" if self.form == "as it is" else self.form, progress)
        with using("llama.cpp"):
            held = _Held(Loaded(path), notes, path.stat().st_size, self.form)
            held.threads = self.threads or _fastest(held.loaded)
            _check(model, held, self.form)
        _held[model] = held
        return self

    def remarks(self, model: PreTrainedModel) -> tuple[str, ...]:
        """What was rounded or fused in the file, and what is not read from it."""
        return (*_held[model].notes, READ) if model in _held else ()

    def held_bytes(self, model: PreTrainedModel) -> int:
        """The file, which is mapped or copied into memory, and what is kept for the next answer."""
        held = _held.get(model)
        return 0 if held is None else held.bytes + sum(each.bytes for each in held.spare)

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
        """Some rows side by side; whenever one ends, the next takes its place."""
        seeds = seeds or sample_seeds(settings.seed, samples) * (len(prompts) // samples)
        drawn, watched = draws(seeds), any(row.watches for row in rows)
        count, length = min(len(prompts), ROWS), max(map(len, prompts)) + settings.max_new_tokens
        with _lent(model, count, length, label) as context:
            places = _Places(context, prompts)
            while places.busy:
                with using(label):
                    at, logits = places.read()
                    free = logits.clone() if watched else logits
                    for index, each in zip(at, logits, strict=True):
                        rows[index].restrict(each)
                    tokens = _chosen(logits, settings, [drawn[index] for index in at])
                    chances = _chances(free, tokens) if watched else [None] * len(at)
                    for index, token, chance in zip(at, tokens.tolist(), chances, strict=True):
                        rows[index].take(token, chance)
                        places.append(index, token, rows[index].ended, settings.max_new_tokens)
                yield

    def read(self, model: PreTrainedModel, spans: Sequence[Span], label: str = "Reading text") -> Reader:
        """By the plain engine, on the weights that the file was made of."""
        return Eager().read(model, spans, label)


class _Places:
    """Who sits where in a context, and what of each has still to be read.

    Args:
        context: emptied here.
        prompts: all of them; those for which there is no place wait.
    """

    def __init__(self, context: Context, prompts: Sequence[Sequence[int]]) -> None:
        self._context, self._prompts = context, prompts
        context.clear()
        self._shared = _shared(prompts) if len(prompts) > 1 else 0
        self._waiting = deque(range(len(prompts)))
        self._row: dict[int, int] = {}  # of a prompt
        self._todo: dict[int, list[int]] = {}
        self._length: dict[int, int] = {}  # tokens that its row holds
        self._said: dict[int, int] = {}
        self._prefix = list(prompts[0][: self._shared])
        if not self._shared:
            self._seat(range(context.rows))

    @property
    def busy(self) -> bool:
        """Whether there is anything left to read."""
        return bool(self._prefix or self._row)

    def _seat(self, rows: Sequence[int]) -> None:
        """Give free rows to those who wait."""
        for row in rows:
            if self._waiting:
                index = self._waiting.popleft()
                self._row[index], self._length[index], self._said[index] = row, self._shared, 0
                self._todo[index] = list(self._prompts[index][self._shared :])

    def read(self) -> tuple[list[int], Tensor]:
        """One pass: whose turn it is to go on, and the logits ``(those, vocabulary)`` they go on from."""
        if self._prefix:
            self._read_prefix()
            return [], torch.empty(0)
        tokens: list[int] = []
        places: list[int] = []
        rows: list[int] = []
        wanted: list[int] = []
        at: list[int] = []
        for index, row in sorted(self._row.items(), key=lambda item: len(self._todo[item[0]])):
            part = self._todo[index][: CHUNK - len(tokens)]
            if not part:
                continue
            self._todo[index] = self._todo[index][len(part) :]
            start = self._length[index]
            tokens, rows = tokens + part, rows + [row] * len(part)
            places += range(start, start + len(part))
            self._length[index] = start + len(part)
            if not self._todo[index]:
                wanted.append(len(tokens) - 1)
                at.append(index)
        return at, self._context.read(tokens, places, rows, wanted)

    def _read_prefix(self) -> None:
        part, self._prefix = self._prefix[:CHUNK], self._prefix[CHUNK:]
        start = self._shared - len(self._prefix) - len(part)
        self._context.read(part, range(start, start + len(part)), [0] * len(part), [])
        if not self._prefix:
            for row in range(1, self._context.rows):
                self._context.copy(0, row)
            self._seat(range(self._context.rows))

    def append(self, index: int, token: int, ended: bool, limit: int) -> None:
        """Go on with a token, or leave the place to the next."""
        self._said[index] += 1
        if not ended and self._said[index] < limit:
            self._todo[index] = [token]
            return
        row = self._row.pop(index)
        self._context.cut(row, self._shared)
        self._seat([row])


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, the last of the shortest left out; 0 if it is not worth it."""
    columns = zip(*prompts, strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    length = min(alike, min(map(len, prompts)) - 1)
    return length if length >= SHORTEST else 0


@contextmanager
def _lent(model: PreTrainedModel, rows: int, length: int, label: str) -> Iterator[Context]:
    """A context for oneself; one of the last is kept for the next answer."""
    with using(label):
        held = _held.get(model)
        if held is None:
            raise NotAvailable(f"{label} has no file for llama.cpp: load the variant again.")
        length = -(-length // STEP) * STEP
        fitting = [each for each in held.spare if each.rows >= rows and each.length >= length]
        if fitting:
            held.spare.remove(fitting[0])
        else:
            held.spare.clear()
        context = fitting[0] if fitting else Context(held.loaded, rows, length, "F16", held.threads)
    try:
        yield context
    finally:
        held.spare[:] = [context]


def _chosen(logits: Tensor, settings: Decoding, drawn: Sequence[torch.Generator]) -> Tensor:
    """Next tokens; the likeliest by numpy, which finds it in a tenth of torch's time on a CPU."""
    if settings.temperature == 0 or not len(logits):
        return torch.from_numpy(logits.numpy().argmax(axis=-1)) if len(logits) else logits
    return choose(logits, settings, drawn)


def _chances(logits: Tensor, tokens: Tensor) -> list[float]:
    """How probable each token ``(rows,)`` was by its logits."""
    found: list[float] = (
        torch.softmax(logits, dim=-1).gather(-1, tokens[:, None].long())[:, 0].tolist() if len(logits) else []
    )
    return found


def _check(model: PreTrainedModel, held: _Held, form: str) -> None:
    """Compare with the model on some tokens: a setting that llama.cpp does not know would show here.

    Raises:
        InvalidInput: it computes something else.
    """
    ids = some_tokens(model, TRIED)
    context = Context(held.loaded, 1, STEP, "F16", held.threads)
    got = context.read(ids, range(TRIED), [0] * TRIED, [TRIED - 1])[0]
    wanted = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    plain = form in ("as it is", "F32", "F16", "BF16") and not any(isinstance(each, Packed) for each in model.modules())
    apart = float((got - wanted).norm() / wanted.norm().clamp(min=1e-30)) if got.shape == wanted.shape else float("inf")
    if not apart < (APART if plain else ROUNDED_APART):
        raise InvalidInput(
            f"llama.cpp computes something else from these weights (its logits are {apart:.0%} apart): it does not "
            "know this architecture as it is configured, so use another engine."
        )


def _fastest(loaded: Loaded) -> int:
    """How many threads give a token soonest, tried."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [count for count in (cores, cores // 2, cores // 4) if count] or [1]
    context, took = Context(loaded, 1, STEP, "F16", 1), {}
    for count in dict.fromkeys(counts):
        context.set_threads(count)
        context.read([0], [0], [0], [0])  # the first time starts them
        started = time.perf_counter()
        for place in range(PASSES):
            context.read([0], [1 + place], [0], [0])
        took[count] = time.perf_counter() - started
        context.cut(0, 0)
    return min(took, key=lambda count: took[count])
