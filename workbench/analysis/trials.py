"""One recipe tried, in steps of rising price: what it would weigh, how far it is from the model, how fast, how good.

A trial ends where it surely breaks a bound: nothing dearer is measured of it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, Field, JsonValue
from torch import Tensor

from workbench.analysis.goals import Constraint
from workbench.core import estimate
from workbench.core.device import device_failed
from workbench.core.errors import Cancelled, InvalidInput, WorkbenchError, first_line
from workbench.core.estimate import ENOUGH, Estimate
from workbench.core.progress import Progress
from workbench.core.value import Value
from workbench.measurement.latency import requests, time_interleaved
from workbench.measurement.likelihood import answer_span, likelihoods, prepared, window_span
from workbench.measurement.memory import bits_per_weight, peak_memory
from workbench.measurement.scores import scored
from workbench.recipe import Recipe, step_from_json
from workbench.runtime.reader import Span
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

TOKENS = 2000  # that the distance from the model is measured on
ROUNDS, NEW_TOKENS = 6, 8  # of a first timing
PART = 8  # examples that are scored between two looks at whether the bound can still be kept
SPEEDS = {"ttft": "ttft", "inter_token_latency": "token_seconds", "throughput": "throughput"}  # as timings have them
Stage = Callable[[Variant, Progress], dict[str, Estimate]]
STAGES = ("refused", "weight", "distance", "speed", "score", "whole")


class Trial(Value):
    """A recipe that was tried.

    Attributes:
        number: in the order of trying.
        params: what the search chose.
        recipe: the steps, as JSON values.
        estimates: what was measured, by metric; on the examples that the search may see.
        ended: where: one of `STAGES`; "whole" where all was measured.
        why: it ended, or failed.
        seconds: that it took.
        search: of which it is a part: a hash of all that this depends on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)
    number: int
    params: dict[str, JsonValue]
    recipe: list[dict[str, JsonValue]]
    estimates: dict[str, Estimate] = Field(default_factory=dict)
    ended: str = "whole"
    why: str = ""
    seconds: float = 0.0
    search: str = ""

    @property
    def steps(self) -> Recipe:
        """As steps that can be applied."""
        return Recipe(step_from_json(dict(each)) for each in self.recipe)


@dataclass(frozen=True)
class Draw:
    """What is to be tried.

    Attributes:
        number: in the order of trying.
        params: what the search chose.
        recipe: that came of it; None where a step refuses.
        why: it does.
    """

    number: int
    params: dict[str, Any]
    recipe: Recipe | None
    why: str = ""

    @property
    def trial(self) -> Trial:
        """Of which nothing is measured yet."""
        steps = [] if self.recipe is None else [each.to_json() for each in self.recipe]
        ended = "refused" if self.recipe is None else "whole"
        return Trial(number=self.number, params=self.params, recipe=steps, ended=ended, why=self.why)


class TooLarge(WorkbenchError):
    """A recipe's weights are forecast to break a bound, so it is not made."""

    def __init__(self, bound: Constraint, size: Estimate) -> None:
        super().__init__(f"It is forecast to break '{bound}'.")
        self.size = size


@dataclass(frozen=True)
class Judge:
    """Who measures trials.

    Attributes:
        base: what recipes are applied to.
        task: with the examples that the search may see as its test split.
        windows: of a text, token ids of those that it may see.
        constraints: that a trial is ended by.
        metrics: that are to be measured.
        seen: the baseline's estimates.
        scores: of the baseline on the examples.
        measured: examples whose gold answers tell the distance from the model; all where it is 0.
        remembered: what the base made of the text that the distance is measured on.
    """

    base: Variant
    task: Task | Text
    windows: Sequence[Sequence[int]]
    constraints: tuple[Constraint, ...]
    metrics: frozenset[str]
    seen: Mapping[str, Estimate]
    scores: Sequence[float] = ()
    measured: int = 0
    remembered: dict[tuple[Span, ...], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def judged(self, draws: Sequence[Draw], progress: Progress) -> list[Trial]:
        """Try recipes; whatever goes wrong is noted, but for a cancel."""
        stages = {"weight": self._weight, "distance": self._distance, "speed": self._speed, "score": self._score}
        return [self._tried(each.trial, stages, progress) for each in draws]

    def timed(self, trial: Trial, progress: Progress) -> Trial:
        """Time a recipe of which all else was measured."""
        return self._tried(trial, {"speed": self._speed}, progress)

    def _tried(self, trial: Trial, stages: Mapping[str, Stage], progress: Progress) -> Trial:
        """Go through stages until one surely breaks a bound."""
        begun, found = time.monotonic(), dict(trial.estimates)
        ended, why = "whole", ""
        try:
            variant = self.made(trial.steps, progress)
            for stage, measured in stages.items():
                found |= _finite(measured(variant, progress))
                if broken := self._broken(found) or self._hopeless(found):
                    ended, why = stage, f"It breaks '{broken}'."
                    break
        except Cancelled:
            raise
        except TooLarge as error:
            ended, why, found = "weight", str(error), {"weight_bytes": error.size}
        except WorkbenchError as error:
            ended, why = "refused", str(error)
        except (
            ArithmeticError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # a combination nobody tried
            if device_failed(error):
                raise
            ended, why = "refused", f"It failed: {type(error).__name__}: {first_line(error, 160)}."
        spent = trial.seconds + time.monotonic() - begun
        return trial.model_copy(update={"estimates": found, "ended": ended, "why": why, "seconds": spent})

    def made(self, recipe: Recipe, progress: Progress) -> Variant:
        """The variant of a recipe, unless its weights are forecast to be too large.

        Raises:
            TooLarge: it is.
            WorkbenchError: a step refuses.
        """
        variant, steps = self.base, list(recipe)
        for at, step in enumerate(steps):
            if at == len(steps) - 1:
                forecast = step.forecast(variant)  # type: ignore[attr-defined]
                size = Estimate.exact(float(forecast.weight_bytes), "bytes")
                if broken := self._broken({"weight_bytes": size}):
                    raise TooLarge(broken, size)
            variant = variant.apply(step, self.task, progress)
        return variant

    def _broken(self, found: Mapping[str, Estimate]) -> Constraint | None:
        """The first bound that is surely broken."""
        known = (each for each in self.constraints if each.metric in found)
        return next((each for each in known if each.broken(found[each.metric], self.seen)), None)

    def _weight(self, variant: Variant, progress: Progress) -> dict[str, Estimate]:
        found = {
            "weight_bytes": Estimate.exact(variant.total_bytes, "bytes"),
            "bits_per_weight": Estimate.exact(bits_per_weight(variant), "bits"),
        }
        if "peak_memory" in self.metrics:
            asked = requests(variant, self.task, 1)[0]
            found["peak_memory"] = Estimate.exact(peak_memory(variant, asked, NEW_TOKENS), "bytes")
        return found

    def _distance(self, variant: Variant, progress: Progress) -> dict[str, Estimate]:
        """KL to the base, and perplexity, on few tokens."""
        spans = [self.spans(each) for each in (self.base, variant)]
        found = likelihoods([self.base, variant], spans, progress, self.remembered)[1]
        nll = estimate.ratio_of_sums(found.nll, found.tokens, "nats/token")
        told = {"perplexity": estimate.exponential(nll)}
        if found.kl is None or found.same_top is None:
            raise InvalidInput("It has another vocabulary, so its distance from the model cannot be measured.")
        told["kl_to_baseline"] = estimate.ratio_of_sums(found.kl, found.tokens, "nats/token")
        told["same_top_token"] = estimate.ratio_of_sums(found.same_top, found.tokens, "fraction")
        return told

    def spans(self, variant: Variant) -> list[Span]:
        """The same text for every variant, about `TOKENS` tokens as the base is asked, of what the search may see."""
        if isinstance(self.task, Text):
            windows = self.windows
            if variant.tokenizer is not self.base.tokenizer:
                windows = self.task.windows(variant.tokenizer, "test")[: len(self.windows)]
            return [window_span(variant, each) for each in windows[: max(ENOUGH, TOKENS // self.task.window)]]
        asked = prepared(variant, self.task, self.measured or None)
        pairs = zip(asked, self.task.test, strict=False)
        return [answer_span(variant, each.ids, example.answer) for each, example in pairs]

    def _speed(self, variant: Variant, progress: Progress) -> dict[str, Estimate]:
        """A short timing beside the base, whose own figure is known better."""
        if not self.metrics.intersection(SPEEDS):
            return {}
        rounds = list(time_interleaved([self.base, variant], self.task, ROUNDS, NEW_TOKENS, progress))
        found = {}
        for metric, name in SPEEDS.items():
            here, there = ([float(getattr(each[at], name)) for each in rounds] for at in range(2))
            ratio = estimate.paired_ratio(there, here)
            found[metric] = ratio.model_copy(
                update={end: self.seen[metric].value * getattr(ratio, end) for end in ("value", "low", "high")}
                | {"unit": self.seen[metric].unit}
            )
        return found

    def _score(self, variant: Variant, progress: Progress) -> dict[str, Estimate]:
        """Scores example by example, until a bound surely cannot be kept."""
        if not self.metrics.intersection({"score", "flips"}) or not isinstance(self.task, Task):
            return {}
        bounds = [each for each in self.constraints if each.metric == "score" and not each.at_most]
        marks: list[float] = []
        while len(marks) < len(self.task.test):
            part = self.task.model_copy(update={"test": self.task.test[len(marks) : len(marks) + PART]})
            marks += scored(variant, part, progress=progress).scores
            if any(self._short(each, marks) for each in bounds):
                break
        before = self.scores[: len(marks)]
        flipped = [float((a >= 0.5) != (b >= 0.5)) for a, b in zip(marks, before, strict=True)]
        return {"score": estimate.mean(marks, "fraction"), "flips": estimate.mean(flipped, "fraction")}

    def _hopeless(self, found: Mapping[str, Estimate]) -> Constraint | None:
        """The bound on the score because of which not all examples were scored."""
        if "score" not in found or found["score"].n == len(self.scores):
            return None
        return next(each for each in self.constraints if each.metric == "score" and not each.at_most)

    def _short(self, bound: Constraint, marks: Sequence[float]) -> bool:
        """Whether the examples so far, paired with the baseline's, already say that a bound is broken."""
        times = bound.amount if bound.of_baseline else 0.0
        least = 0.0 if bound.of_baseline else bound.amount
        short = [mark - times * before - least for mark, before in zip(marks, self.scores, strict=False)]
        found = estimate.mean(short, "fraction")
        return found.enough and found.high + least_width(len(short)) < 0


def least_width(n: int) -> float:
    """How far the true share may be from 0 where none of `n` samples showed it, at 99 % (Clopper and Pearson, 1934)."""
    return float(1 - 0.005 ** (1 / n))


def _finite(found: dict[str, Estimate]) -> dict[str, Estimate]:
    """What was measured, if all of it is numbers."""
    for metric, each in found.items():
        if not all(map(math.isfinite, (each.value, each.low, each.high))):
            raise InvalidInput(f"Its {metric} is not a number: the model is broken.")
    return found
