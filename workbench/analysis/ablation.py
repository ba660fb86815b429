"""What each step of a recipe does: alone, left out, in another order, and together against the sum of all alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core import estimate
from workbench.core.drawn import HTML, drawn
from workbench.core.errors import Cancelled, InvalidInput, OutOfMemory, WorkbenchError
from workbench.core.estimate import Estimate
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.measurement.comparison import Comparison, compare
from workbench.measurement.runs import Run
from workbench.recipe import Recipe, RecipeStep
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

MOST_STEPS = 5  # of a recipe: with 5 there are 33 variants
Order = tuple[int, ...]  # numbers of steps, in the order in which they are applied
KINDS = {
    "alone": "with this step alone",
    "off": "when it is left out of the recipe",
    "together": "with the whole recipe",
    "sum": "if the effects of all alone added up",
    "interaction": "of the whole recipe, beyond that sum",
    "pair": "of these two, beyond the sum of both alone",
    "order": "when these two change places",
}


@dataclass(frozen=True)
class Effect:
    """A difference that steps make to one metric.

    Attributes:
        kind: one of `KINDS`.
        steps: their names.
        metric: "inter_token_latency", "perplexity", "score" or "weight_bytes".
        change: of the metric's logarithm, or of the score itself; samples paired.
    """

    kind: str
    steps: tuple[str, ...]
    metric: str
    change: Estimate

    @property
    def shown(self) -> Estimate:
        """In per cent of the metric, or in points of the score."""
        scaled = (lambda value: value) if self.metric == "score" else np.expm1
        found = {end: 100 * float(scaled(min(getattr(self.change, end), 50.0))) for end in ("value", "low", "high")}
        return self.change.model_copy(update=found | {"unit": "points" if self.metric == "score" else "%"})

    def __str__(self) -> str:
        found = self.shown
        exact = found.low == found.high
        ends = "" if exact else f" [{found.low:+.1f}, {found.high:+.1f}]"
        unsure = "" if exact or not self.change.covers(0.0) else ", no measurable difference"
        return f"{found.value:+.1f} {found.unit}{ends}{unsure}"


@dataclass(frozen=True)
class Ablation:
    """A recipe taken apart.

    Attributes:
        steps: names of its steps, in order.
        effects: of every kind and metric that was measured.
        refused: what could not be made, by its steps in order, and why.
        comparison: all variants that were measured, in one interleaved session.
    """

    steps: tuple[str, ...]
    effects: tuple[Effect, ...]
    refused: dict[tuple[str, ...], str]
    comparison: Comparison

    @property
    def metrics(self) -> list[str]:
        """Those that effects were found on."""
        return list(dict.fromkeys(each.metric for each in self.effects))

    def of(self, metric: str, kind: str) -> list[Effect]:
        """The effects of one kind on a metric."""
        return [each for each in self.effects if (each.metric, each.kind) == (metric, kind)]

    @property
    def lines(self) -> list[str]:
        """What was found, a sentence each."""
        found = []
        for metric in self.metrics:
            alone = ", ".join(f"{each.steps[0]} {each}" for each in self.of(metric, "alone"))
            said = f"{metric}: alone, {alone}."
            for whole, added, more in zip(
                *(self.of(metric, kind) for kind in ("together", "sum", "interaction")), strict=True
            ):
                said += f" Together {whole}; added up {added}; the difference is interaction: {more}."
            found.append(said)
            found += [
                f"{metric}: {' and '.join(each.steps)} in the other order: {each}." for each in self.of(metric, "order")
            ]
        return found + [f"{', then '.join(steps)}: refused. {why}" for steps, why in self.refused.items()]

    def table(self) -> "pandas.DataFrame":
        """One row an effect, in per cent, or in points of the score."""
        import pandas

        rows = []
        for each in self.effects:
            shown = each.shown
            row = {"metric": each.metric, "effect": each.kind, "steps": ", ".join(each.steps), "value": shown.value}
            rows.append(row | {"low": shown.low, "high": shown.high, "unit": shown.unit, "n": shown.n})
        return pandas.DataFrame(rows)

    def figure(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """Every step alone, their sum and all together, and what another order does, a panel a metric."""
        return drawn(self, transparent=transparent)

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        return "\n".join([f"Ablation of {', '.join(self.steps)}:", *self.lines])


@watched
def ablate(
    recipe: Recipe | Sequence[RecipeStep],
    base: Variant,
    task: Task | Text,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Ablation:
    """Take a recipe apart: every step alone and left out, every pair alone and exchanged, measured interleaved.

    Beginnings that several variants share are made once. What cannot be made, such as pruning what is packed already,
    is noted with its reason.

    Args:
        recipe: two to five steps.
        base: what it is applied to.
        task: for steps that need data, and for the measurement.
        progress: cancel and progress.
        settings: others of `compare`: examples, rounds, new_tokens.

    Raises:
        InvalidInput: too few or too many steps, or the recipe itself cannot be applied.
        OutOfMemory: all variants do not fit at once, as they must to be measured in turns.
        Cancelled: the progress was cancelled.
    """
    steps, progress = tuple(recipe), progress or Progress()
    if not 2 <= len(steps) <= MOST_STEPS:
        raise InvalidInput(f"ablate() takes a recipe of 2 to {MOST_STEPS} steps, not of {len(steps)}.")
    names = _names(steps)
    made: dict[Order, Variant | str] = {(): base}
    wanted = list(dict.fromkeys(_orders(len(steps))))
    for order in wanted:
        _make(order, steps, task, made, progress)
    whole = tuple(range(len(steps)))
    if isinstance(why := made[whole], str):
        raise InvalidInput(f"The recipe cannot be applied as it is: {why}")
    kept = {order: each for order in wanted if isinstance(each := made[order], Variant)}
    named = [replace(each, name=_called(order, names)) for order, each in kept.items()]
    comparison = compare(named, task, progress=progress, **settings)
    runs = dict(zip(kept, comparison.runs, strict=True))
    refused = {tuple(names[at] for at in order): each for order in wanted if isinstance(each := made[order], str)}
    return Ablation(names, tuple(_effects(runs, names)), refused, comparison)


def _names(steps: Sequence[RecipeStep]) -> tuple[str, ...]:
    """A name for each step; one that comes again is numbered."""
    labels = [each.label for each in steps]
    return tuple(
        label if labels.count(label) == 1 else f"{label} {labels[: at + 1].count(label)}"
        for at, label in enumerate(labels)
    )


def _called(order: Order, names: Sequence[str]) -> str:
    return ", ".join(names[at] for at in order) or "base"


def _orders(count: int) -> Iterator[Order]:
    """What is made: the base, each alone, the whole, each left out, each two exchanged, each pair."""
    whole = tuple(range(count))
    yield ()
    yield from ((at,) for at in whole)
    yield whole
    yield from (_without(whole, at) for at in whole)
    yield from (_exchanged(whole, a, b) for a, b in combinations(whole, 2))
    yield from combinations(whole, 2)


def _without(order: Order, at: int) -> Order:
    return tuple(each for each in order if each != at)


def _exchanged(order: Order, a: int, b: int) -> Order:
    return tuple({a: b, b: a}.get(each, each) for each in order)


def _make(
    order: Order,
    steps: Sequence[RecipeStep],
    task: Task | Text,
    made: dict[Order, Variant | str],
    progress: Progress,
) -> None:
    """Make a variant and all that it stands on, or note why it cannot be."""
    if order in made:
        return
    _make(order[:-1], steps, task, made, progress)
    parent = made[order[:-1]]
    if isinstance(parent, str):
        made[order] = parent
        return
    try:
        made[order] = parent.apply(steps[order[-1]], task, progress)
    except (Cancelled, OutOfMemory):  # what fits would depend on the order of making
        raise
    except WorkbenchError as error:
        made[order] = str(error)


def _effects(runs: dict[Order, Run], names: Sequence[str]) -> Iterator[Effect]:
    """Every difference that can be told, metric by metric."""
    for metric, change in METRICS.items():
        for kind, at, terms, surer in _differences(len(names)):
            known = [(weight, runs[order]) for order, weight in terms.items() if order in runs]
            found = change(known) if len(known) == len(terms) else None
            if found is not None:
                yield Effect(kind, tuple(names[each] for each in at), metric, found.at(estimate.among(surer)))


def _differences(count: int) -> Iterator[tuple[str, Order, dict[Order, float], int]]:
    """What is asked: its kind and steps, what weighs how much, and among how many of its kind it is read."""
    whole, none = tuple(range(count)), ()
    singles: list[Order] = [(at,) for at in whole]
    pairs = list(combinations(whole, 2))
    for one in singles:
        yield "alone", one, {one: 1.0, none: -1.0}, count
    yield "together", whole, {whole: 1.0, none: -1.0}, 1
    yield "sum", whole, dict.fromkeys(singles, 1.0) | {none: -float(count)}, 1
    yield "interaction", whole, {whole: 1.0, **dict.fromkeys(singles, -1.0), none: count - 1.0}, 1
    if count > 2:
        for at in whole:
            yield "off", (at,), {_without(whole, at): 1.0, whole: -1.0}, count
        for a, b in pairs:
            yield "pair", (a, b), {(a, b): 1.0, (a,): -1.0, (b,): -1.0, none: 1.0}, len(pairs)
    for a, b in pairs:
        yield "order", (a, b), {_exchanged(whole, a, b): 1.0, whole: -1.0}, len(pairs)


Terms = Sequence[tuple[float, Run]]


def _latency(terms: Terms) -> Estimate | None:
    samples = _weighed(terms, "inter_token_median", np.log)
    return None if samples is None else estimate.median(samples, "log")


def _perplexity(terms: Terms) -> Estimate | None:
    samples, tokens = _weighed(terms, "nll"), terms[0][1].samples.get("tokens")
    if samples is None or any(run.samples.get("tokens") != tokens for _, run in terms):
        return None
    assert tokens is not None
    return estimate.ratio_of_sums(list(samples), tokens, "log")


def _score(terms: Terms) -> Estimate | None:
    samples = _weighed(terms, "score")
    return None if samples is None else estimate.mean(samples, "fraction")


def _bytes(terms: Terms) -> Estimate | None:
    if not all("weight_bytes" in run.estimates for _, run in terms):
        return None
    return Estimate.exact(sum(weight * float(np.log(run["weight_bytes"].value)) for weight, run in terms), "log")


METRICS: dict[str, Callable[[Terms], Estimate | None]] = {
    "inter_token_latency": _latency,
    "perplexity": _perplexity,
    "score": _score,
    "weight_bytes": _bytes,
}


def _weighed(terms: Terms, name: str, scaled: Callable[[Any], Any] = np.asarray) -> Any:
    """Weighted sums over runs, sample by sample ``(samples,)``; None where not all have as many."""
    columns = [run.samples.get(name, []) for _, run in terms]
    if not columns[0] or len({len(each) for each in columns}) > 1:
        return None
    return sum(weight * scaled(np.asarray(each, float)) for (weight, _), each in zip(terms, columns, strict=True))
