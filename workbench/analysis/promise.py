"""What a confirming run promises: whether bounds are kept on examples that the search has not seen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from workbench.analysis.goals import Constraint
from workbench.analysis.trials import least_width
from workbench.core import estimate
from workbench.core.estimate import Estimate
from workbench.measurement.runs import Run

Standing = Literal["kept", "unsure", "broken"]
PAIRED = {"ttft": "ttft", "inter_token_latency": "inter_token_median", "throughput": "throughput"}


@dataclass(frozen=True)
class Promise:
    """What the confirming run says of a trial, on examples that the search has not seen.

    Attributes:
        number: of the trial.
        run: all that was measured.
        standings: of every bound: kept or broken by all of the 99 % interval, or unsure.
    """

    number: int
    run: Run
    standings: dict[str, Standing]

    @property
    def standing(self) -> Standing:
        """Of the bounds together: the worst."""
        return next((each for each in ("broken", "unsure") if each in self.standings.values()), "kept")


def standing(bound: Constraint, run: Run, baseline: Run) -> Standing:
    """Whether a run, paired with the base, keeps to a bound by all of a 99 % interval, breaks it, or is too near it."""
    beyond = _beyond(bound, run, baseline)
    if beyond is None:
        found, known = run[bound.metric], baseline.estimates
        if bound.metric in ("score", "flips", "same_top_token"):
            found = _at_least(found)
        if bound.kept(found, known):
            return "kept"
        return "broken" if bound.broken(found, known) else "unsure"
    if not beyond.enough:
        return "unsure"
    if bound.metric == "score":
        beyond = _at_least(beyond)
    return "kept" if beyond.high <= 0 else "broken" if beyond.low > 0 else "unsure"


def _at_least(found: Estimate) -> Estimate:
    """A share with an interval at least as wide as that of what never happened: equal samples have no bootstrap."""
    wide = least_width(found.n)
    low, high = min(found.low, found.value - wide), max(found.high, found.value + wide)
    return found.model_copy(update={"low": low, "high": high})


def _beyond(bound: Constraint, run: Run, baseline: Run) -> Estimate | None:
    """By how much a run is beyond a bound that is a multiple of the baseline, sample by sample; None for others."""
    sign = 1.0 if bound.at_most else -1.0
    if not bound.of_baseline or not bound.amount > 0:
        return None
    if bound.metric == "score":
        pairs = zip(run.samples["score"], baseline.samples["score"], strict=True)
        return estimate.mean([sign * (after - bound.amount * before) for after, before in pairs], "fraction")
    if bound.metric == "perplexity" and run.samples.get("tokens") == baseline.samples.get("tokens"):
        tokens, most = run.samples["tokens"], math.log(bound.amount)
        both = zip(run.samples["nll"], baseline.samples["nll"], tokens, strict=True)
        return estimate.ratio_of_sums([sign * (a - b - most * n) for a, b, n in both], tokens, "nats/token")
    if name := PAIRED.get(bound.metric):
        ratio = estimate.paired_ratio(run.samples[name], baseline.samples[name])
        ends: Mapping[str, float] = {
            end: sign * (getattr(ratio, end) / bound.amount - 1) for end in ("value", "low", "high")
        }
        low, high = sorted((ends["low"], ends["high"]))
        return ratio.model_copy(update={"value": ends["value"], "low": low, "high": high})
    return None
