"""Making compiled steps: which ways are tried, how they are compared with the model, and the rows that use them."""

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from workbench.core.device import device_failed, machine
from workbench.core.errors import Cancelled, InvalidInput, OutOfMemory, WorkbenchError, first_line
from workbench.core.progress import Progress
from workbench.core.remembered import recall, remember
from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import Packed
from workbench.runtime import graphs
from workbench.runtime.blockwise import in_blocks
from workbench.runtime.forward import using
from workbench.runtime.kernels import quickened
from workbench.runtime.prefix import Prefix
from workbench.runtime.rows import Rows
from workbench.runtime.running import stated_length
from workbench.runtime.slots import Slots
from workbench.runtime.trial import COARSE, ROUNDING, architecture, some_tokens, way_of
from workbench.runtime.whole import Step, whole

How = Literal["whole", "blocks"]

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

    def __str__(self) -> str:
        compiled, plain = self.pace
        how = "as a whole" if self.how == "whole" else "a block at a time"
        pays = f"it pays back after {self.seconds / (plain - compiled):,.0f} tokens" if plain > compiled else "no gain"
        return (
            f"Compiled {how} ({self.flags}) for up to {self.longest:,} tokens in {self.seconds:.0f} s: "
            f"{1e3 * compiled:.1f} ms a token instead of {1e3 * plain:.1f} when tried, {pays}."
        )

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
        super().__init__(quickened(model), [prompt], way_of(model), prefix)
        self._made, self._span = made, span
        self._length = len(prompt) + (prefix.length if prefix else 0)
        self._slots: Slots | None = None

    def logits(self) -> Tensor:
        """Of the next token, ``(1, vocabulary)``."""
        if self._slots is None:
            logits = super().logits()
            self._slots = self._made.slots()
            weakref.finalize(self, self._made.give_back, self._slots)
            self._slots.put(self._state, 0, self._length)
            self._state = None
            return logits
        place = self._slots.lengths[0]
        span = self._span or next((each for each in sorted(self._made.steps) if each > place), None)
        if span is None:
            return self._beyond(self._slots)
        self._slots.lengths[0] += 1
        at = torch.tensor([[place]], device=self._ids.device)
        return self._made.steps[span](self._slots, self._ids, at)

    def kept(self) -> DynamicCache | None:
        """A copy of the keys and values: their place is the next answer's."""
        return super().kept() if self._slots is None else self._slots.taken(0)

    def _beyond(self, slots: Slots) -> Tensor:
        if slots.lengths[0] == slots.capacity:
            self._slots = slots = slots.grown(2 * slots.capacity)
        return slots.logits(self._ids)[:, -1]


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


def lengths(model: PreTrainedModel, longest: int) -> list[int]:
    """Tokens that graphs are made for, few of them: each costs a compilation, and a long one reads more for a token."""
    most = min(longest, stated_length(model.config) or longest)
    found = [min(SHORTEST, most)]
    while found[-1] < most:
        found.append(min(GROWTH * found[-1], most))
    return found


def compile_steps(
    model: PreTrainedModel, hows: Sequence[How], flags: Sequence[str], longest: int, progress: Progress
) -> Graphs | str:
    """The fastest of the ways that says what the model says; a sentence if there is none."""
    ways = [(how, each) for how in hows for each in flags]
    about = _about(model, ways, longest)
    tried = _remembered(about, ways)
    found: list[Graphs] = []
    reasons = []
    started = time.perf_counter()
    try:
        check_fits(model, type(model).__name__)
        spans = lengths(model, longest)
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
                progress.advance(len(spans))
    except InvalidInput as error:
        reasons.append(str(error))
    if not found:
        return f"Could not be compiled, so it answers operation by operation: {reasons[0]}"
    best = min(found, key=lambda made: made.pace[0])
    if len(tried) > 1:
        remember("compiled_ways", about, [best.how, best.flags])
    best.seconds = time.perf_counter() - started
    return best


def _remembered(about: list[Any], ways: list[tuple[How, str]]) -> list[tuple[How, str]]:
    """The fastest, where all were tried on this machine before; else all."""
    try:
        how, flags = recall("compiled_ways", about)
    except (ValueError, TypeError):
        return ways
    return [each for each in ways if each == (how, flags)] or ways


def _about(model: PreTrainedModel, ways: list[tuple[How, str]], longest: int) -> list[Any]:
    """What the choice is kept for: this machine, these versions, and models of these modules and shapes."""
    shapes = sorted({f"{tuple(each.shape)} {each.dtype}" for each in model.state_dict().values()})
    kinds = sorted(type(module).__name__ for module in model.modules())
    return [architecture(model), kinds, shapes, machine(model.device), ways, longest]


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
        with torch.no_grad():  # not within `using`: others may answer while a compiler works
            if isinstance(blocks, nn.ModuleList):
                made.steps[span] = in_blocks(blocks, slots, span, flags)
            else:
                made.steps[span] = whole(shared, slots, span, flags)
        progress.check()
        with using("Compiling"):
            made.pace = _compared(model, made, span)
        progress.advance()
    return made


def _compared(model: PreTrainedModel, made: Graphs, span: int) -> tuple[float, float]:
    """Seconds a token takes, compiled and not.

    Raises:
        _Differs: the logits are others.
    """
    tokens = some_tokens(model, READ + CHECKED + TIMED)
    plain_rows = Rows(quickened(model), [tokens[:READ]], way_of(model))
    rows = CompiledRows(model, tokens[:READ], None, made, span), plain_rows
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
