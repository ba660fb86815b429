"""Throughput and latency of a variant over how many requests it answers at once, and where the knee is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median as middle
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from workbench.core import estimate
from workbench.core.device import environment, synchronize
from workbench.core.drawn import HTML, Drawn, drawn
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.measurement.latency import requests
from workbench.runtime.batching import Batched
from workbench.runtime.engine import Eager
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Batching(Drawn):
    """What answering several requests at once gains and costs; every measure is a list, one a size.

    Attributes:
        variant: its name.
        sizes: how many requests came at once.
        throughput: tokens of all answers per second, reading the prompts included.
        latency: seconds from one token of a request to its next.
        ttft: seconds to a request's first token, as the median request sees it.
        gain: throughput as a multiple of that of the first size, paired by round.
        knee: the size with the most power, throughput over latency, and the ends of its interval. Beyond it a request
            loses more than all of them gain. Source: Kleinrock, "Power and Deterministic Rules of Thumb for
            Probabilistic Problems in Computer Communications", 1979.
        notes: what a reader should know.
        environment: what the numbers depend on.
    """

    variant: str
    sizes: tuple[int, ...]
    throughput: tuple[Estimate, ...]
    latency: tuple[Estimate, ...]
    ttft: tuple[Estimate, ...]
    gain: tuple[Estimate, ...]
    knee: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        knee, low, high = self.knee
        at = self.sizes.index(knee)
        return (
            f"'{self.variant}': the knee is at {knee} requests at once (99 % interval {low} to {high}): "
            f"{self.throughput[at].value:.4g} tokens/s, {self.gain[at].value:.3g} times that of {self.sizes[0]}, and "
            f"{1000 * self.latency[at].value:.3g} ms from token to token instead of "
            f"{1000 * self.latency[0].value:.3g} ms."
        )

    def table(self) -> "pandas.DataFrame":
        """One row a size; times in seconds, throughput in tokens/s, with the ends of the intervals."""
        import pandas

        columns = {"throughput": self.throughput, "latency": self.latency, "ttft": self.ttft, "gain": self.gain}
        found = {
            f"{name}{end}": [getattr(each, part) for each in values]
            for name, values in columns.items()
            for end, part in (("", "value"), (" low", "low"), (" high", "high"))
        }
        return pandas.DataFrame(found, index=pandas.Index(self.sizes, name="requests"))

    def figure(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """Throughput and latency over the size, the knee marked."""
        return drawn(self, transparent=transparent)

    def html(self) -> str:
        """A table that needs no kernel."""
        return str(drawn(self, HTML))


@watched
def batching(
    variant: Variant,
    task: Task | Text,
    sizes: Sequence[int] = SIZES,
    *,
    rounds: int = 6,
    new_tokens: int = 24,
    progress: Progress | None = None,
) -> Batching:
    """Answer so many requests at once, for every size: what is gained, and what each request pays for it.

    All answers have exactly `new_tokens` greedy tokens, end tokens ignored. The sizes are measured interleaved, in an
    order that reverses every round, after a round that is not counted.

    Args:
        variant: answers, by its engine; a plain one decodes all that come at once side by side.
        task: its first test examples, or the beginnings of its test windows, are asked.
        sizes: how many requests come at once.
        rounds: how often each size is measured.
        new_tokens: of every answer.
        progress: cancel and progress.

    Raises:
        InvalidInput: there is no size, one is below 1, or a prompt does not fit the context.
    """
    sizes = tuple(sorted(set(sizes)))
    if not sizes or sizes[0] < 1 or rounds < 1 or new_tokens < 2:
        raise InvalidInput("batching() needs sizes and rounds of at least 1, and at least 2 new tokens.")
    progress = progress or Progress()
    prompts = [variant.encode(each) for each in requests(variant, task, sizes[-1])]
    variant.check_length(max(map(len, prompts)), new_tokens)
    found: dict[int, list[tuple[float, float, float]]] = {size: [] for size in sizes}
    progress.start(f"{variant.name}: batches", (rounds + 1) * len(sizes), undisturbed=True)
    for number in range(rounds + 1):
        for size in sizes[:: 1 if number % 2 else -1]:
            measured = _together(variant, prompts[:size], new_tokens)
            found[size] += [measured] if number else []  # the first round warms up
            progress.advance()
    return _summary(variant, found)


def _together(variant: Variant, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[float, float, float]:
    """Throughput, seconds from token to token and seconds to the first one, of requests that come at once."""
    engine = variant.engine
    if type(engine) in (Eager, Batched):
        engine = Batched(**(engine.model_dump() | {"rows": len(prompts)}))
    settings = variant.decoding.but(max_new_tokens=new_tokens, temperature=0.0)
    synchronize(variant.device)
    started = perf_counter()
    arrived: list[list[float]] = [[] for _ in prompts]
    for _ in engine.decode(variant.model, prompts, settings, [_Clock(times) for times in arrived], label=variant.name):
        pass
    whole = max(times[-1] for times in arrived) - started
    gaps = middle(middle(after - before for before, after in pairwise(times)) for times in arrived)
    return len(prompts) * new_tokens / whole, gaps, middle(times[0] - started for times in arrived)


class _Clock:
    """Follows an answer and notes when its tokens come; it never ends by itself."""

    watches = ended = False

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def restrict(self, logits: object) -> None:
        """Any token may come."""

    def take(self, token: int, chance: float | None = None) -> None:
        """Note the time."""
        self._times.append(perf_counter())


def _summary(variant: Variant, found: dict[int, list[tuple[float, float, float]]]) -> Batching:
    sizes = tuple(found)
    rates, gaps, firsts = (np.array([[each[part] for each in found[size]] for size in sizes]) for part in range(3))
    joins = variant.engine.running(variant.model) is not None
    return Batching(
        variant=variant.name,
        sizes=sizes,
        throughput=tuple(estimate.median(each, "tokens/s") for each in rates),
        latency=tuple(estimate.median(each, "s") for each in gaps),
        ttft=tuple(estimate.median(each, "s") for each in firsts),
        gain=tuple(estimate.paired_ratio(each, rates[0]) for each in rates),
        knee=_knee(sizes, rates, gaps),
        notes=() if joins else ("Its engine cannot let requests join and leave: they are decoded in groups.",),
        environment=environment(variant.device),
    )


def _knee(sizes: Sequence[int], rates: np.ndarray, gaps: np.ndarray) -> tuple[int, int, int]:
    """The size with the most power, and the ends of its interval; both ``(sizes, rounds)``."""
    rounds = rates.shape[1]
    drawn = estimate.resample_indices(rounds, seed=0)
    power = np.median(rates[:, drawn], axis=-1) / np.median(gaps[:, drawn], axis=-1)
    tail = estimate.expanded_tail(rounds) if rounds > 1 else 0.0
    ends = np.quantile(np.argmax(power, axis=0), [tail, 1 - tail], method="nearest")
    best = int(np.argmax(np.median(rates, axis=1) / np.median(gaps, axis=1)))
    return sizes[best], sizes[int(ends[0])], sizes[int(ends[1])]
