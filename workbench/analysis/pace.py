"""How long a pass takes: measured through the variant's engine, and predicted from what it is made of."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise

import numpy as np
from torch import Tensor

from workbench.core.estimate import Estimate, median
from workbench.core.progress import Progress
from workbench.runtime.decoding import Decoding
from workbench.runtime.footprint import Work, count_pass
from workbench.runtime.forward import using
from workbench.runtime.probe import Calls, Copies, Device, Products, seconds
from workbench.runtime.trial import some_tokens
from workbench.variant import Variant

TOKENS = 5  # of an answer; the first belongs to reading the prompt
KNOTS = (3, 12, 48)  # rows at which an engine of others is timed, to predict it at others
APART = 0.5  # of the context: the other lengths at which it is timed


@dataclass
class Samples:
    """Seconds, one number a try.

    Attributes:
        calls: an operation's start.
        products: the linear layers of a pass by themselves, by rows.
        states: moving what is no weight, by rows.
        passes: every row getting one more token through the engine, by rows and tokens before.
        prompts: reading the prompt through the engine, by its tokens.
        prompt_products: the linear layers of reading the prompt.
        prompt_states: moving what is no weight while reading the prompt.
    """

    calls: list[float] = field(default_factory=list)
    products: dict[int, list[float]] = field(default_factory=dict)
    states: dict[int, list[float]] = field(default_factory=dict)
    passes: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    prompts: dict[int, list[float]] = field(default_factory=dict)
    prompt_products: list[float] = field(default_factory=list)
    prompt_states: list[float] = field(default_factory=list)


class _Silent:
    """A row that takes every token and counts it."""

    watches = ended = False

    def __init__(self) -> None:
        self.taken = 0

    def restrict(self, logits: Tensor) -> None:
        """Every token may follow."""

    def take(self, token: int, chance: float | None = None) -> None:
        """One more."""
        self.taken += 1


def time_passes(variant: Variant, rows: int, context: int, seed: int) -> tuple[float, list[float]]:
    """Seconds to read a prompt of its own, and then for every row to get one more token, several times.

    The rows are answers to one request, so that the engine reads the prompt once and then runs them side by side.
    """
    known = sorted(set(some_tokens(variant.model, 512)))
    prompt = random.Random(seed).choices(known, k=context)
    followers = [_Silent() for _ in range(rows)]
    settings = Decoding(max_new_tokens=TOKENS)
    clock, taken = [time.perf_counter()], [0]
    for _ in variant.engine.decode(variant.model, [prompt] * rows, settings, followers, rows, label=variant.name):
        count = sum(each.taken for each in followers)
        if count > taken[-1]:
            clock.append(time.perf_counter())
            taken.append(count)
    spent = [
        (after - before) * rows / (more - less)
        for (before, after), (less, more) in zip(pairwise(clock[1:]), pairwise(taken[1:]), strict=True)
    ]
    return clock[1] - clock[0], spent or [clock[1] - clock[0]]


def sampled(
    variant: Variant, work: Work, prompt: Work, batches: Sequence[int], context: int, rounds: int, progress: Progress
) -> Samples:
    """Everything that is timed, interleaved, so that a machine that gets busier does so for all of it alike."""
    found, model = Samples(), variant.model
    ours = variant.engine.starts != "elsewhere"
    places = [(rows, context) for rows in batches] + ([] if ours else _elsewhere(batches, context))
    progress.start("Timing passes", (rounds + 1) * len(places), undisturbed=True)
    with using(variant.name):
        calls = Calls(variant.device)
        by_rows = {rows: Products(work, model.dtype, variant.device, rows) for rows in batches} if ours else {}
        copies = {rows: Copies(work, model.dtype, variant.device, rows) for rows in by_rows}
        reading = Products(prompt, model.dtype, variant.device) if ours else None
        copying = Copies(prompt, model.dtype, variant.device)
    for number in range(rounds + 1):  # the first warms up
        for rows, length in places[:: 1 if number % 2 else -1]:
            with using(variant.name):
                products = [seconds(by_rows[rows].run, variant.device) for _ in range(2)] if ours else []
                states = [copies[rows].sample() for _ in range(2)] if ours else []
                call = calls.sample()
            first, spent = time_passes(variant, rows, length, seed=1000 * number + rows)
            if number:
                found.calls.append(call)
                found.products.setdefault(rows, []).extend(products)
                found.states.setdefault(rows, []).extend(states)
                found.passes.setdefault((rows, length), []).extend(spent)
                if rows == min(batches):
                    found.prompts.setdefault(length, []).append(first)
            progress.advance()
        if reading is not None:
            with using(variant.name):
                again = [seconds(reading.run, variant.device) for _ in range(2)]
                states = [copying.sample() for _ in range(2)]
            found.prompt_products += again if number else []
            found.prompt_states += states if number else []
    return found


def _elsewhere(batches: Sequence[int], context: int) -> list[tuple[int, int]]:
    """Rows and tokens before at which an engine of others is timed: none of them is what will be predicted."""
    least, most = min(batches), max(batches)
    lengths = [(least, max(1, round(context * (1 - APART)))), (least, round(context * (1 + APART)))]
    return lengths + [(rows, context) for rows in KNOTS if rows not in batches and least < rows < 2 * most]


def predicted(samples: Samples, work: Work, rows: int, device: Device, starts: str, context: int) -> Estimate:
    """Seconds of a pass of so many rows, from its parts; never from the pass itself."""
    if starts == "elsewhere":
        return _interpolated(samples, rows, context)
    return _added(samples.products[rows], samples.states[rows], samples.calls, work, device, starts)


def predicted_prompt(samples: Samples, prompt: Work, device: Device, starts: str, context: int) -> Estimate:
    """Seconds to read a prompt, from its parts; of an engine of others, from prompts of other lengths."""
    if starts == "elsewhere":
        return _between(samples.prompts, context)
    return _added(samples.prompt_products, samples.prompt_states, samples.calls, prompt, device, "operations")


def _added(
    products: Sequence[float],
    states: Sequence[float],
    calls: Sequence[float],
    work: Work,
    device: Device,
    starts: str,
) -> Estimate:
    """Products and states as timed, and what is started besides; a GPU starts ahead of what it computes."""
    found = []
    for product, other, call in zip(products, states, cycle(calls), strict=False):
        if starts == "graph":
            found.append(product + other + call)
        elif device.overlaps:
            found.append(max(product + other, call * work.operations))
        else:
            found.append(product + other + call * (work.operations - work.product_operations))
    return median(found, "s")


def _between(by_length: dict[int, list[float]], context: int) -> Estimate:
    """At a length between two others: half way, as both are as far from it."""
    sides = [values for length, values in sorted(by_length.items()) if length != context]
    pairs = zip(sides[0], sides[-1], strict=False)
    return median([(less + more) / 2 for less, more in pairs], "s")


def _interpolated(samples: Samples, rows: int, context: int) -> Estimate:
    """Of an engine of others: between the passes of other lengths and of other rows."""
    least = min(count for count, _ in samples.passes)
    lengths = {length: values for (count, length), values in samples.passes.items() if count == least}
    start = _between(lengths, context)
    knots = {least: start}
    for count, length in samples.passes:
        if count in KNOTS and length == context and count != rows:
            knots[count] = median(samples.passes[count, length], "s")
    if rows == least or len(knots) == 1:
        return start if rows == least else _times(start, rows / least)
    xs = sorted(knots)
    at = min(max(1, int(np.searchsorted(xs, rows))), len(xs) - 1)
    low, high = xs[at - 1], xs[at]
    share = (rows - low) / (high - low)

    def line(less: float, more: float) -> float:
        return less + share * (more - less)

    before, after = knots[low], knots[high]
    ends = [line(before.low, after.low), line(before.high, after.high)]
    value = line(before.value, after.value)
    n = min(before.n, after.n)
    return Estimate(value=value, low=min(*ends, value), high=max(*ends, value), n=n, unit="s")


def _times(found: Estimate, factor: float) -> Estimate:
    scaled = {name: factor * getattr(found, name) for name in ("value", "low", "high")}
    return Estimate(**scaled, n=found.n, unit=found.unit)


def counted(variant: Variant, context: int) -> tuple[Work, Work]:
    """What a pass of decoding and the reading of a prompt do, by one row."""
    bits = getattr(variant.engine, "cache_bits", 16)
    return count_pass(variant.model, 1, context, 1, bits), count_pass(variant.model, context, 0, 1, bits)


def of(found: Sequence[float]) -> Estimate:
    """Seconds that were tried several times."""
    return median(found, "s")
