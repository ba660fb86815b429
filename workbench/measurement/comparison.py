"""Variants measured side by side: interleaved, paired against the first, with a verdict in words."""

import math
import secrets
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.answering.speaker import Respondent
from workbench.core import files
from workbench.core.device import environment
from workbench.core.drawn import HTML, drawn
from workbench.core.errors import Incomparable, InvalidInput, WorkbenchError
from workbench.core.estimate import ENOUGH, among
from workbench.core.line import watched
from workbench.core.pages import Paged
from workbench.core.progress import Progress
from workbench.measurement import metrics, power, scales
from workbench.measurement.latency import Timing, time_interleaved
from workbench.measurement.likelihood import likelihoods, prepared, task_spans
from workbench.measurement.memory import describe_layers
from workbench.measurement.power import Power
from workbench.measurement.runs import Run, RunStore, runs_from_json
from workbench.measurement.scores import scored
from workbench.measurement.verdict import Verdict, perplexity_change, verdict
from workbench.models.tokens import start_tokens
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

ROUNDS = 10
NEW_TOKENS = 16
Listener = Callable[["Comparison"], None]


class Comparison(Paged):
    """Several runs, the first of them the baseline.

    Attributes:
        runs: one a variant.
        partial: how far it is while it is being measured, or where it was cancelled; empty for a result.
    """

    def __init__(self, runs: Sequence[Run], partial: str = "") -> None:
        if not runs:
            raise InvalidInput("A comparison needs at least one run.")
        for run in runs[1:]:
            _check_comparable(runs[0], run)
        self.runs = tuple(runs)
        self.partial = partial

    @property
    def baseline(self) -> Run:
        """The run that the others are compared with."""
        return self.runs[0]

    def __getitem__(self, variant: str) -> Run:
        for run in self.runs:
            if run.variant == variant:
                return run
        raise InvalidInput(f"There is no run of '{variant}': there are {', '.join(run.variant for run in self.runs)}.")

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that any run has, in their usual order."""
        return [metric for metric in scales.METRICS if any(metric in run.estimates for run in self.runs)]

    def verdicts(self) -> dict[str, Verdict]:
        """What changed against the baseline, by name of variant; the more there are, the surer it must be."""
        return {run.variant: verdict(self.baseline, run, self.confidence) for run in self.runs[1:]}

    @property
    def confidence(self) -> float:
        """Of the intervals that verdicts go by: with 5 variants or fewer 99 %, with more as `estimate.among` says."""
        return among(len(self.runs) - 1)

    def power(self, variant: str | None = None, *, change: float = 0.02) -> Power:
        """How many examples a question needs, before it is asked: from how much the answers differed here.

        Args:
            variant: of this comparison, by name; by default the last one.
            change: that shall be seen: of the score, such as 0.02 for 2 points; of a text's perplexity, as a fraction.

        Raises:
            InvalidInput: there is no such variant, nothing to go by, or the change is none.
        """
        run = self[variant] if variant else self.runs[-1]
        if not 0 < abs(change) <= 1:
            raise InvalidInput("The change is a fraction, such as 0.02 for 2 points of the score.")
        if "score" in run.samples and "score" in self.baseline.samples and run is not self.baseline:
            metric, before, after = "score", self.baseline.samples["score"], run.samples["score"]
            n, moved, seen = len(after), change, power.of_scores(before, after, self.confidence)
        else:
            found = perplexity_change(self.baseline, run) if run is not self.baseline else None
            if found is None or not found.enough:
                raise InvalidInput(
                    f"'{run.variant}' and '{self.baseline.variant}' were not scored on the same {ENOUGH} examples or "
                    "more: compare both on a few first."
                )
            metric, n, moved, seen = "perplexity", found.n, math.log1p(change), power.of_interval(found)
        least = power.smallest(partial(seen, n))
        if metric == "perplexity" and least is not None:
            least = math.expm1(least)
        wanted = power.needed(lambda many: seen(many, moved))
        return Power(run.variant, metric, change, n, seen(n, moved), least, wanted)

    def merge(self, other: "Comparison") -> "Comparison":
        """This comparison with the other's further variants; pairs hold only within one session.

        Raises:
            Incomparable: they differ in device, versions, task or settings; the reason is named.
        """
        known = {run.variant for run in self.runs}
        return Comparison([*self.runs, *(run for run in other.runs if run.variant not in known)])

    def table(self) -> "pandas.DataFrame":
        """One row a variant: every metric in SI units with `_low` and `_high`, the verdict in words, and the notes."""
        import pandas

        verdicts = self.verdicts()
        rows = []
        for run in self.runs:
            row: dict[str, Any] = {"variant": run.variant}
            for metric in self.metrics:
                if metric in run.estimates:
                    found = run.estimates[metric]
                    row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
            words = str(verdicts[run.variant]) if run.variant in verdicts else "baseline"
            rows.append(row | {"verdict": words, "notes": " ".join(run.notes)})
        return pandas.DataFrame(rows).set_index("variant")

    def figure(self) -> "plotly.graph_objects.Figure":
        """One Plotly figure: latency and quality side by side, below them quality over latency."""
        return drawn(self)

    def to_json(self) -> str:
        """All runs with their samples, as `from_json` reads them."""
        return '{"runs": [' + ", ".join(run.model_dump_json() for run in self.runs) + "]}"

    @classmethod
    def from_json(cls, text: str) -> "Comparison":
        """The comparison that `to_json` wrote."""
        return cls(runs_from_json(text))

    def save(self, path: str | Path) -> Path:
        """Write the comparison as JSON, whole or not at all."""
        place = files.home(path)
        files.write_text(place, self.to_json())
        return place

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read a comparison that `save` wrote."""
        try:
            return cls.from_json(files.home(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(f"Cannot read '{path}': {error.strerror}.") from None

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        lines = [f"Partial, {self.partial}: not a result."] if self.partial else []
        lines += [f"Comparison on {self.baseline.task}, baseline {self.baseline.variant}:"]
        lines += [f"  {name}: {said}" for name, said in self.verdicts().items()]
        return "\n".join(lines + [f"  note on {self.baseline.variant}: {note}" for note in self.baseline.notes])


@watched
def compare(
    variants: Sequence[Respondent],
    task: Task | Text,
    *,
    examples: int | None = None,
    rounds: int = ROUNDS,
    new_tokens: int = NEW_TOKENS,
    progress: Progress | None = None,
    on_update: Listener | None = None,
    store: RunStore | bool = True,
) -> Comparison:
    """Measure variants side by side on a task; the first is the baseline.

    Text is scored first, then requests are timed (interleaved, never while anything is scored), then answers are
    generated and scored. Endpoints, which answer outside this process, have no memory and no likelihoods here.

    Args:
        variants: variants and endpoints.
        task: what they are measured on.
        examples: how many test examples or windows are scored; all by default.
        rounds: timed requests of every variant.
        new_tokens: length of a timed answer.
        on_update: called with the comparison so far, which says that it is partial, whenever there is more to see.
        store: where the finished runs are appended; True for `RunStore()`, False for nowhere.

    Raises:
        InvalidInput: no variants, or a setting out of range.
        Cancelled: the progress was cancelled; nothing is stored.
    """
    if not variants:
        raise InvalidInput("compare() needs at least one variant.")
    if rounds < 1 or new_tokens < 2 or (examples is not None and examples < 1):
        raise InvalidInput("compare() needs at least one example, one round and two new tokens.")
    here = [each for each in variants if isinstance(each, Variant)]
    if isinstance(task, Text) and not here:
        raise InvalidInput("A text is scored by likelihoods, which an endpoint does not give: compare on a task.")
    devices = {str(variant.device) for variant in here}
    if len(devices) > 1:
        raise InvalidInput(f"The variants are on different devices ({', '.join(sorted(devices))}): load them on one.")
    progress = progress or Progress()
    settings = {"examples": examples or 0, "rounds": rounds, "new_tokens": new_tokens}
    runs = _blank_runs(variants, task, settings)

    timed: list[list[Timing]] = [[] for _ in variants]

    def tell(updated: list[Run], answered: int | None = None) -> None:
        if on_update:
            timing = f"{len(timed[0])} of {rounds} rounds"
            answers = f"answers of {answered} of {len(variants)} scored"
            on_update(Comparison(updated, timing if answered is None else answers))

    with progress.whole(_expected(variants, task, examples, rounds, new_tokens)) as following:
        places = [index for index, each in enumerate(variants) if isinstance(each, Variant)]
        asked: dict[int, Any] = {}
        for index, each in zip(places, here, strict=True):
            following()
            asked[index] = prepared(each, task, examples, progress)
        for index, each in zip(places, here, strict=True):
            runs[index] = metrics.with_memory(runs[index], each, task, new_tokens)
        tell(runs)
        spans = [task_spans(each, task, examples, asked[index]) for index, each in zip(places, here, strict=True)]
        following()
        for index, found in zip(places, likelihoods(here, spans, progress) if here else [], strict=True):
            apart = index == 0 or places[0] != 0  # KL is to the baseline, which may be elsewhere
            runs[index] = metrics.with_likelihood(runs[index], found, baseline=apart)
        tell(runs)
        following()
        for timings in time_interleaved(variants, task, rounds, new_tokens, progress):
            for own, timing in zip(timed, timings, strict=True):
                own.append(timing)
            if on_update:
                tell([metrics.with_timing(run, each) for run, each in zip(runs, timed, strict=True)])
        runs = [metrics.with_timing(run, each) for run, each in zip(runs, timed, strict=True)]
        if isinstance(task, Task):
            for index, variant in enumerate(variants):
                following()
                tell(runs, index)
                marks = scored(variant, task, examples, progress, asked.get(index))
                prices = getattr(variant, "prices", None)
                runs[index] = metrics.with_scores(runs[index], marks, runs[0], prices)
    if store is not False:
        _keep(runs, RunStore() if store is True else store)
    return Comparison(runs)


def _expected(
    variants: Sequence[Respondent], task: Task | Text, examples: int | None, rounds: int, new_tokens: int
) -> list[float]:
    """How long the parts of a comparison take beside each other, in generated tokens: their order is `compare`'s."""
    many = len(variants)
    reading = sum(isinstance(each, Variant) for each in variants)
    whole = len(task.test) if isinstance(task, Task) else task.test
    scored = min(whole, examples or whole)
    text = scored * (task.window / 8 if isinstance(task, Text) else task.max_new_tokens / 2)  # read many at once
    parts = [0.01 * scored] * reading + [reading * text, many * (rounds + 1) * (new_tokens + 2.0)]
    return parts + [scored * task.max_new_tokens / 4.0] * many if isinstance(task, Task) else parts


def measure(variant: Respondent, task: Task | Text, **settings: Any) -> Run:
    """Measure one variant alone; takes what `compare` takes."""
    return compare([variant], task, **settings).runs[0]


def _keep(runs: list[Run], store: RunStore) -> None:
    """Append the runs; a disk that refuses is no reason to throw the measurement away."""
    try:
        for run in runs:
            store.append(run)
    except WorkbenchError as error:
        warnings.warn(str(error), stacklevel=3)


def _blank_runs(variants: Sequence[Respondent], task: Task | Text, settings: dict[str, int]) -> list[Run]:
    names: list[str] = []
    for variant in variants:
        repeats = sum(name == variant.name or name.startswith(f"{variant.name} (") for name in names)
        names.append(f"{variant.name} ({repeats + 1})" if repeats else variant.name)
    device = next((each.device for each in variants if isinstance(each, Variant)), torch.device("cpu"))
    session, now = secrets.token_hex(8), datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Run(
            variant=name,
            source=variant.source,
            recipe=[step.to_json() for step in steps],
            task=task.name,
            fingerprint=task.fingerprint,
            environment=environment(device),
            settings=settings,
            session=session,
            measured_at=now,
            beginning=_beginning(variant) if isinstance(task, Text) and isinstance(variant, Variant) else "",
            layers=describe_layers(variant) if isinstance(variant, Variant) else "",
            notes=list(variant.notes),
            caveats=list(dict.fromkeys(step.caveat for step in steps if step.caveat)),
        )
        for name, variant in zip(names, variants, strict=True)
        for steps in [variant.recipe if isinstance(variant, Variant) else ()]
    ]


def _beginning(variant: Variant) -> str:
    """What stands before every window of a text."""
    return str(variant.tokenizer.decode(start_tokens(variant.tokenizer)))


def _check_comparable(first: Run, other: Run) -> None:
    if first.fingerprint != other.fingerprint:
        raise Incomparable(
            f"'{other.variant}' was measured on another task ({other.task}, not {first.task}): measure it again."
        )
    for name in sorted(first.environment.keys() | other.environment.keys()):
        ours, theirs = first.environment.get(name, "none"), other.environment.get(name, "none")
        if ours != theirs:
            raise Incomparable(
                f"'{other.variant}' was measured with {name} {theirs} and '{first.variant}' with {ours}: "
                "measure both again."
            )
    if first.source == other.source and first.beginning != other.beginning:
        raise Incomparable(
            f"The windows of '{other.variant}' begin with '{other.beginning}', those of '{first.variant}' with "
            f"'{first.beginning}': measure both again."
        )
    if first.settings != other.settings:
        raise Incomparable(
            f"'{other.variant}' was measured with other settings ({other.settings}, not {first.settings}): "
            "measure it again."
        )
