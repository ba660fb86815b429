"""Our own decode step, compiled once for each length, on keys and values that are written in place."""

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core.device import device_failed
from workbench.core.errors import Cancelled, InvalidInput, OutOfMemory, WorkbenchError, first_line
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import Packed
from workbench.runtime import graphs
from workbench.runtime.blockwise import in_blocks
from workbench.runtime.engine import Eager
from workbench.runtime.forward import using
from workbench.runtime.kvcache import FULL
from workbench.runtime.prefix import Prefix
from workbench.runtime.rows import Rows
from workbench.runtime.slots import Slots
from workbench.runtime.trial import COARSE, ROUNDING, some_tokens, way_of

How = Literal["whole", "blocks"]
Step = Callable[[Slots, Tensor, Tensor], Tensor]

SHORTEST, GROWTH = 1024, 4  # tokens of the first length, and how much longer the next is
READ, CHECKED, TIMED = 9, 6, 8  # tokens: of the prompt that is tried, then compared one by one, then timed


@dataclass
class Graphs:
    """The compiled steps of one model.

    Attributes:
        model: the copy, tensors shared, that steps run.
        how: whole, or a block at a time.
        flags: of Inductor.
        steps: for each length, how a token is read.
        seconds: that it took to compile them.
        pace: seconds a token took when tried, compiled and not.
        idle: memory for keys and values that no answer uses.
    """

    model: PreTrainedModel
    how: How
    flags: str
    steps: dict[int, Step] = field(default_factory=dict)
    seconds: float = 0.0
    pace: tuple[float, float] = (0.0, 0.0)
    idle: list[Slots] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens that a row may have until it outgrows the graphs."""
        return max(self.steps)

    @property
    def held_bytes(self) -> int:
        """Keys and values set aside, and weights that the code keeps in a layout of its own."""
        copied = sharing.total_bytes([self.model]) if self.flags == graphs.COPIES else 0
        return copied + sum(each.held_bytes for each in self.idle)

    def slots(self) -> Slots:
        """Empty memory for one row."""
        return self.idle.pop() if self.idle else Slots(self.model, 1, self.longest)

    def give_back(self, slots: Slots) -> None:
        """One is kept for the next answer."""
        slots.lengths.clear()
        if not self.idle:
            self.idle.append(slots)


class CompiledRows(Rows):
    """One prompt read as usual and continued by compiled steps; beyond the longest, by plain ones in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompt: Sequence[int],
        prefix: Prefix | None,
        made: Graphs,
        span: int | None = None,
    ) -> None:
        super().__init__(model, [prompt], way_of(model), prefix)
        self._made, self._span = made, span
        self._read = len(prompt) + (prefix.length if prefix else 0)
        self._slots: Slots | None = None

    def logits(self) -> Tensor:
        """Of the next token, ``(1, vocabulary)``."""
        if self._slots is None:
            logits = super().logits()
            self._slots = self._made.slots()
            weakref.finalize(self, self._made.give_back, self._slots)
            self._slots.put(self._state, 0, self._read)
            self._state = None
            return logits
        place = self._slots.lengths[0]
        span = self._span or next((each for each in sorted(self._made.steps) if each > place), None)
        if span is None:
            return self._beyond(self._slots)
        self._slots.lengths[0] += 1
        at = torch.tensor([[place]], device=self._ids.device)
        return self._made.steps[span](self._slots, self._ids, at)

    def _beyond(self, slots: Slots) -> Tensor:
        if slots.lengths[0] == slots.capacity:
            self._slots = slots = slots.grown(2 * slots.capacity)
        return slots.logits(self._ids)[:, -1]


class Compile(Eager):
    """The plain way, but that each further token of one answer is read by a graph compiled beforehand.

    Prompts, and several answers side by side, are read operation by operation.

    Attributes:
        how: the whole model as one graph, a graph for blocks alike, or the faster of both.
        longest: tokens, prompt and answer, that graphs are made for.
        search: whether Inductor's freezing and C++ wrapper are tried, too.
    """

    how: Literal["auto", "whole", "blocks"] = "auto"
    longest: int = Field(default=SHORTEST, ge=64, le=131072)
    search: bool = False

    def packs(self, model: PreTrainedModel) -> bool:
        """Keys and values are written in place, as they are computed."""
        return False

    def fitted(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> "Compile":
        """Compile at once, so that no answer waits for it; what cannot be compiled answers as before."""
        found = _made.setdefault(model, {})
        if not isinstance(found.get(self), Graphs):
            found[self] = _compiled(model, self, progress)
        return self

    def graphs(self, model: PreTrainedModel) -> Graphs | None:
        """The compiled steps of a model, if there are any."""
        found = _made.get(model, {}).get(self)
        return found if isinstance(found, Graphs) else None

    def state(self, model: PreTrainedModel) -> str:
        """What it runs on, in a sentence."""
        found = _made.get(model, {}).get(self)
        if found is None:
            return "Not compiled yet: it answers operation by operation."
        return found if isinstance(found, str) else _said(found)

    def held_bytes(self, model: PreTrainedModel) -> int:
        """Memory for keys and values, and copies of weights."""
        made = self.graphs(model)
        return made.held_bytes if made else 0

    def open(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, prefix: Prefix | None = None
    ) -> Rows:
        """One prompt goes on compiled; several go on side by side as they do without."""
        made = self.graphs(model)
        length = len(prompts[0]) + (prefix.length if prefix else 0)
        if made is None or len(prompts) > 1 or length >= made.longest or self.cache_bits < FULL:
            return super().open(model, prompts, new_tokens, prefix)
        return CompiledRows(model, prompts[0], prefix, made)


_made: "WeakKeyDictionary[PreTrainedModel, dict[Compile, Graphs | str]]" = WeakKeyDictionary()


def check_fits(model: PreTrainedModel, name: str) -> None:
    """Look whether a model can be compiled at all.

    Raises:
        InvalidInput: its keys and values cannot be written in place.
    """
    if not way_of(model).slots:
        raise InvalidInput(
            f"'{name}' keeps more than keys and values that can be written in place, so its steps cannot be compiled: "
            "run it as it is."
        )


def _said(made: Graphs) -> str:
    compiled, plain = made.pace
    how = "as a whole" if made.how == "whole" else "a block at a time"
    pays = f"it pays back after {made.seconds / (plain - compiled):,.0f} tokens" if plain > compiled else "no gain"
    return (
        f"Compiled {how} ({made.flags}) for up to {made.longest:,} tokens in {made.seconds:.0f} s: "
        f"{1e3 * compiled:.1f} ms a token instead of {1e3 * plain:.1f} when tried, {pays}."
    )


def lengths(model: PreTrainedModel, longest: int) -> list[int]:
    """Tokens that graphs are made for, few of them: each costs a compilation, and a long one reads more for a token."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    most = min([longest, *(int(each) for each in limits if each)])
    found = [min(SHORTEST, most)]
    while found[-1] < most:
        found.append(min(GROWTH * found[-1], most))
    return found


def _compiled(model: PreTrainedModel, engine: Compile, progress: Progress) -> Graphs | str:
    """The fastest of what was asked for that says what the model says; a sentence if there is none."""
    hows: list[How] = ["blocks", "whole"] if engine.how == "auto" else [engine.how]
    tried = [(how, flags) for how in hows for flags in (graphs.FLAGS if engine.search else list(graphs.FLAGS)[:1])]
    found: list[Graphs] = []
    reasons = []
    started = time.perf_counter()
    try:
        check_fits(model, type(model).__name__)
        spans = lengths(model, engine.longest)
        progress.start("Compiling the decode step", len(tried) * len(spans))
        for how, flags in tried:
            try:
                found.append(_tried(model, how, flags, spans, progress))
            except (Cancelled, OutOfMemory):
                raise
            except Exception as error:  # whatever an architecture, Inductor or a compiler says
                if device_failed(error):
                    raise
                reasons.append(_reason(error))
                progress.advance(0)
    except InvalidInput as error:
        reasons.append(str(error))
    if not found:
        return f"Could not be compiled, so it answers operation by operation: {reasons[0]}"
    best = min(found, key=lambda made: made.pace[0])
    best.seconds = time.perf_counter() - started
    return best


def _reason(error: Exception) -> str:
    said = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {first_line(error)}."
    return " ".join(said.split())


def _tried(model: PreTrainedModel, how: How, flags: str, spans: Sequence[int], progress: Progress) -> Graphs:
    """Compile for every length and compare; with our own attention, else with the model's."""
    try:
        return _made_of(graphs.readied(model), model, how, flags, spans, progress)
    except (NotImplementedError, _Differs):
        return _made_of(graphs.readied(model, grouped=False), model, how, flags, spans, progress)


class _Differs(Exception):
    """A compiled step does not say what the model says."""


def _made_of(
    shared: PreTrainedModel, model: PreTrainedModel, how: How, flags: str, spans: Sequence[int], progress: Progress
) -> Graphs:
    made = Graphs(shared, how, flags)
    blocks = shared.get_submodule(decoder_blocks(model)[0]) if how == "blocks" else None
    for span in spans:
        progress.check()
        with using("Compiling"):
            slots = Slots(shared, 1, spans[-1])
            slots.set_aside()
            if isinstance(blocks, nn.ModuleList):
                made.steps[span] = in_blocks(blocks, slots, span, flags)
            else:
                made.steps[span] = whole(shared, slots, span, flags)
            made.pace = _compared(model, made, span)
        progress.advance()
    return made


def whole(model: PreTrainedModel, slots: Slots, span: int, flags: str) -> Step:
    """The whole model as one graph of a token, its place, and all keys and values."""

    def step(token: Tensor, place: Tensor, *kept: Tensor) -> Tensor:
        with slots.holding(kept):
            return slots.forward(token, place, span)[:, -1]

    zero = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    inputs = [zero, zero.clone(), *slots.tensors]
    code = graphs.built(graphs.traced(step, inputs), inputs, flags)
    return lambda slots, token, place: _only(code(token, place, *slots.tensors))


def _only(out: Any) -> Tensor:
    found: Tensor = out if isinstance(out, Tensor) else out[0]
    # CUDA graphs write the next answer to the same place.
    return found.clone() if found.device.type == "cuda" else found


def _compared(model: PreTrainedModel, made: Graphs, span: int) -> tuple[float, float]:
    """Seconds a token takes, compiled and not.

    Raises:
        _Differs: the logits are others.
    """
    tokens = some_tokens(model, READ + CHECKED + TIMED)
    rows = CompiledRows(model, tokens[:READ], None, made, span), Rows(model, [tokens[:READ]], way_of(model))
    errors: list[float] = []
    times: tuple[list[float], list[float]] = [], []
    for token in tokens[READ:]:
        said = []
        for each, taken in zip(rows, times, strict=True):
            started = time.perf_counter()
            said.append(each.logits().float())
            taken.append(time.perf_counter() - started)
            each.append(torch.tensor([token], device=model.device))
        errors.append(float((said[0] - said[1]).norm() / said[1].norm().clamp(min=1e-30)))
    packed = any(isinstance(module, Packed) for module in model.modules())
    if not sorted(errors)[len(errors) // 2] < (COARSE if packed else ROUNDING.get(model.dtype, COARSE)):
        raise _Differs("what it said differed from what the model says")
    compiled, plain = (sorted(each[2:])[len(each[2:]) // 2] for each in times)
    return compiled, plain
