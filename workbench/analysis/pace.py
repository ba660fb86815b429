"""How long a pass takes: measured through the variant's engine, and predicted from what it is made of."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from workbench.core.estimate import Estimate, median
from workbench.core.progress import Progress
from workbench.runtime import probe
from workbench.runtime.decoding import Decoding
from workbench.runtime.footprint import Work, count_pass
from workbench.runtime.forward import using
from workbench.runtime.probe import Calls, Device, Products, seconds, without_products
from workbench.runtime.trial import some_tokens
from workbench.variant import Variant

TOKENS = 5  # of an answer; the first belongs to reading the prompt
KNOTS = (3, 12, 48)  # rows at which an engine of others is timed, to predict it at others
MOST_ROWS = 1 << 20
APART = 0.5  # of the context: the other lengths at which it is timed
Seconds = list[float]


@dataclass
class Samples:
    """Seconds, one number a try.

    Attributes:
        calls: an operation's start.
        products: the linear layers of a pass by themselves, by rows; under 0 those of reading the prompt. Rows that the
            engine does not take at once take as many turns here.
        rest: a pass without its products through the same engine, for the fewest rows and the most; under 0 likewise.
        passes: every row getting one more token through the engine, by rows and tokens before.
        prompts: reading the prompt through the engine, by its tokens.
    """

    calls: Seconds = field(default_factory=list)
    products: dict[int, Seconds] = field(default_factory=dict)
    rest: dict[int, Seconds] = field(default_factory=dict)
    passes: dict[tuple[int, int], Seconds] = field(default_factory=dict)
    prompts: dict[int, Seconds] = field(default_factory=dict)


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


def time_passes(
    variant: Variant, rows: int, context: int, model: PreTrainedModel | None = None
) -> tuple[float, Seconds]:
    """Seconds to read a prompt that no cache can know, and then for every row to get one more token, several times.

    The rows are answers to one request, so that the engine reads the prompt once and then runs them side by side.
    """
    model = variant.model if model is None else model
    known = sorted(set(some_tokens(model, 512)))
    prompt = random.Random().choices(known, k=context)
    followers = [_Silent() for _ in range(rows)]
    clock, taken = [time.perf_counter()], [0]
    settings = Decoding(max_new_tokens=TOKENS)
    for _ in variant.engine.decode(model, [prompt] * rows, settings, followers, rows, label=variant.name):
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
    found = Samples()
    ours = variant.engine.starts(variant.model, min(batches)) != "elsewhere"
    places = [(rows, context) for rows in batches] + ([] if ours else _elsewhere(batches, context))
    progress.start("Timing passes", (rounds + 1) * len(places), undisturbed=True)
    products: dict[int, Products] = {}
    most = variant.engine.most_rows(variant.model)
    with using(variant.name):
        calls = Calls(variant.device)
        empty = without_products(variant.model, work) if ours else None
        if ours:
            products = {rows: Products(work, variant.dtype, variant.device, min(rows, most)) for rows in batches}
            products[0] = Products(prompt, variant.dtype, variant.device)
    for number in range(rounds + 1):
        kept = found if number else Samples()  # the first round warms up
        for rows, length in places[:: 1 if number % 2 else -1]:
            for key in [rows, 0] if rows == min(batches) else [rows]:
                if key in products:
                    turns = max(1.0, key / most)
                    spent = [turns * each for each in _several(variant, products[key])]
                    kept.products.setdefault(key, []).extend(spent)
            with using(variant.name):
                kept.calls.append(calls.sample())
            if empty is not None and rows in (min(batches), max(batches)):
                first, spent = time_passes(variant, rows, length, empty)
                kept.rest.setdefault(rows, []).extend(spent)
                if rows == min(batches):
                    kept.rest.setdefault(0, []).append(first)
            first, spent = time_passes(variant, rows, length)
            kept.passes.setdefault((rows, length), []).extend(spent)
            if rows == min(batches):
                kept.prompts.setdefault(length, []).append(first)
            progress.advance()
    return found


def _several(variant: Variant, products: Products) -> Seconds:
    with using(variant.name):
        return [seconds(products.run, variant.device) for _ in range(2)]


def _elsewhere(batches: Sequence[int], context: int) -> list[tuple[int, int]]:
    """Rows and tokens before at which an engine of others is timed: none of them is what will be predicted."""
    least, most = min(batches), max(batches)
    lengths = [(least, max(1, round(context * (1 - APART)))), (least, round(context * (1 + APART)))]
    return lengths + [(rows, context) for rows in KNOTS if rows not in batches and least < rows < 2 * most]


def predicted(samples: Samples, work: Work, rows: int, device: Device, starts: str, context: int) -> Estimate:
    """Seconds of a pass of so many rows, from its parts; never from the pass itself."""
    if starts == "elsewhere":
        return _interpolated(samples, rows, context)
    return _added(samples.products[rows], rest(samples, work, rows, device, starts), samples, work, rows, device)


def predicted_prompt(samples: Samples, prompt: Work, device: Device, starts: str, context: int) -> Estimate:
    """Seconds to read a prompt, from its parts; of an engine of others, from prompts of other lengths."""
    if starts == "elsewhere":
        return _between(samples.prompts, context)
    return _added(samples.products[0], of(samples.rest[0]), samples, prompt, 1, device)


def rest(samples: Samples, work: Work, rows: int, device: Device, starts: str) -> Estimate:
    """Seconds of a pass beside its products: on a line between the fewest rows and the most.

    A graph starts once, and moves its states at the device's bandwidth.
    """
    if starts == "graph":
        moved = rows * work.other_bytes / device.bandwidth
        return of([call + moved for call in samples.calls])
    by_rows = {count: of(each) for count, each in samples.rest.items() if count}
    return _line(by_rows, rows)


def starting(samples: Samples, work: Work, rows: int, device: Device, starts: str) -> float:
    """Seconds of that which do not grow with the rows."""
    whole = rest(samples, work, rows, device, starts).value
    counts = sorted(count for count in samples.rest if count)
    if starts == "graph":
        return min(whole, of(samples.calls).value)
    if len(counts) < 2:
        return min(whole, (work.operations - work.product_operations) * of(samples.calls).value)
    fewest, most = (of(samples.rest[count]).value for count in (counts[0], counts[-1]))
    return min(whole, max(0.0, fewest - max(0.0, most - fewest) * counts[0] / (counts[-1] - counts[0])))


def _added(products: Seconds, beside: Estimate, samples: Samples, work: Work, rows: int, device: Device) -> Estimate:
    """Both parts; a GPU starts ahead of what it computes."""
    found = of(products)
    if device.overlaps:
        moved = min(beside.value, rows * work.other_bytes / device.bandwidth)
        started = beside.value + work.product_operations * of(samples.calls).value
        return _shifted(found, max(moved, started - found.value), found)
    return _shifted(found, beside.value, beside)


def _shifted(found: Estimate, more: float, beside: Estimate) -> Estimate:
    """A sum; its ends are as far away as the parts' together would be were they independent."""
    low = float(np.hypot(found.value - found.low, beside.value - beside.low))
    high = float(np.hypot(found.high - found.value, beside.high - beside.value))
    value = found.value + more
    return Estimate(value=value, low=value - low, high=value + high, n=min(found.n, beside.n), unit="s")


def _between(by_length: dict[int, Seconds], context: int) -> Estimate:
    """At a length between two others."""
    return _line({length: of(values) for length, values in by_length.items() if length != context}, context)


def _interpolated(samples: Samples, rows: int, context: int) -> Estimate:
    """Of an engine of others: from passes of other lengths and of other rows."""
    least = min(count for count, _ in samples.passes)
    lengths = {length: values for (count, length), values in samples.passes.items() if count == least}
    knots = {least: _between(lengths, context)}
    for (count, length), values in samples.passes.items():
        if count in KNOTS and length == context and count != rows:
            knots[count] = of(values)
    return _line(knots, rows)


def _line(knots: dict[int, Estimate], at: int) -> Estimate:
    """On the line through the two nearest of some points; in proportion where there is one alone."""
    xs = sorted(knots)
    if len(xs) == 1:
        only, factor = knots[xs[0]], at / xs[0]
        return only if factor == 1 else Estimate(**_scaled(only, factor), n=only.n, unit=only.unit)
    place = min(max(1, int(np.searchsorted(xs, at))), len(xs) - 1)
    before, after = knots[xs[place - 1]], knots[xs[place]]
    share = (at - xs[place - 1]) / (xs[place] - xs[place - 1])
    value, low, high = (
        (1 - share) * getattr(before, end) + share * getattr(after, end) for end in ("value", "low", "high")
    )
    n = min(before.n, after.n)
    return Estimate(value=value, low=min(low, high, value), high=max(low, high, value), n=n, unit=before.unit)


def _scaled(found: Estimate, factor: float) -> dict[str, float]:
    return {name: factor * getattr(found, name) for name in ("value", "low", "high")}


def reads_faster(samples: Samples, work: Work, device: Device) -> bool:
    """Whether products read weights, too many for a cache, clearly faster than the device was found to read."""
    fewest = samples.products.get(min(samples.products, key=lambda rows: rows or MOST_ROWS, default=0), [])
    large = work.product_bytes >= probe.LARGEST // 2
    return bool(fewest) and large and work.product_bytes / min(fewest) > 1.1 * device.bandwidth


def counted(variant: Variant, context: int) -> tuple[Work, Work]:
    """What a pass of decoding and the reading of a prompt do, by one row."""
    bits = getattr(variant.engine, "cache_bits", 16)
    return count_pass(variant.model, 1, context, 1, bits), count_pass(variant.model, context, 0, 1, bits)


def of(found: Sequence[float]) -> Estimate:
    """Seconds that were tried several times."""
    return median(found, "s")
