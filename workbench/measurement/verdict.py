"""What a run says against its baseline, in words: faster or not, smaller or not, better or worse, or no difference."""

import math
from dataclasses import dataclass
from functools import partial

from workbench.core import estimate as estimates
from workbench.core.estimate import CONFIDENCE, Estimate
from workbench.measurement import power
from workbench.measurement.runs import Run

SAME_SIZE = 0.005  # sizes this close are called the same
MOST = 5.0  # of a ratio's logarithm, beyond which no change is looked for
EQUIVALENT = 0.01  # a speed interval that lies within 1 % of 1 is "as fast", however surely it differs


@dataclass(frozen=True)
class Verdict:
    """Sentence parts, and the numbers behind them.

    Attributes:
        speed: how many times faster each token comes, if timed.
        ttft: how many times sooner the first token comes, if timed.
        quality: change of the score, or of the perplexity's logarithm (nats a token), if both were scored.
        words: the parts of the verdict.
        caveats: why it is not faster, where it is not.
        notes: what else should be known of the variant and not of the baseline, in sentences.
    """

    speed: Estimate | None
    ttft: Estimate | None
    quality: Estimate | None
    words: tuple[str, ...]
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def no_difference(self) -> bool:
        """Whether nothing measurable changed."""
        return all(part.startswith(("no measurable", "same size")) for part in self.words)

    def __str__(self) -> str:
        said = "; ".join((*self.words, *self.caveats)) or "not measured yet"
        return f"{said}. Note: {' '.join(self.notes)}" if self.notes else said


def verdict(baseline: Run, run: Run, confidence: float = CONFIDENCE) -> Verdict:
    """Compare a run with its baseline, paired where both were measured in one session.

    Args:
        baseline: what the run is compared with.
        run: whose verdict it is.
        confidence: of the intervals that it goes by.
    """
    speed = _ratio(baseline, run, "inter_token_median", confidence)
    ttft = _ratio(baseline, run, "ttft", confidence)
    parts = [_speed_words(speed, "faster", "slower", "speed", confidence)]
    if ttft and not _same(ttft):
        parts.append(_speed_words(ttft, "sooner first token", "later first token", "time to first token", confidence))
    scored = "score" in run.samples
    quality = _score_change(baseline, run, confidence) if scored else perplexity_change(baseline, run, confidence)
    said = _score_words(baseline, run, quality, confidence) if scored else _perplexity_words(quality, confidence)
    parts += [_size_words(baseline, run), said]
    slow = speed and speed.enough and speed.high <= 1 + EQUIVALENT and run.recipe != baseline.recipe
    notes = tuple(note for note in run.notes if note not in baseline.notes)
    return Verdict(speed, ttft, quality, tuple(filter(None, parts)), tuple(run.caveats) if slow else (), notes)


def _ratio(baseline: Run, run: Run, name: str, confidence: float) -> Estimate | None:
    before, after = baseline.samples.get(name), run.samples.get(name)
    if not before or not after:
        return None
    paired = baseline.session == run.session and len(before) == len(after)
    ratio = estimates.paired_ratio if paired else estimates.unpaired_ratio
    return ratio(before, after, confidence=confidence)


def _same(ratio: Estimate) -> bool:
    return ratio.covers(1.0) or (ratio.low > 1 - EQUIVALENT and ratio.high < 1 + EQUIVALENT)


def _speed_words(ratio: Estimate | None, better: str, worse: str, what: str, confidence: float) -> str:
    if ratio is None:
        return ""
    if not ratio.enough:
        return f"too few timings to tell the {what} (n={ratio.n})"
    if _same(ratio):
        logs = ratio.model_copy(update={end: math.log(getattr(ratio, end)) for end in ("value", "low", "high")})
        least = power.smallest(partial(power.of_interval(logs, confidence), ratio.n), most=MOST)
        shows = f"; {math.exp(max(least, EQUIVALENT)):.2f}x would show" if least else ""
        return f"no measurable difference in {what} [{ratio.low:.2f}, {ratio.high:.2f}{shows}]"
    if ratio.value >= 1:
        return f"{ratio.value:.2f}x {better} [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{1 / ratio.value:.2f}x {worse} [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"


def _size_words(baseline: Run, run: Run) -> str:
    if "weight_bytes" not in run.estimates or "weight_bytes" not in baseline.estimates:
        return ""
    ratio = baseline["weight_bytes"].value / run["weight_bytes"].value
    if abs(ratio - 1) < SAME_SIZE:
        return "same size"
    return f"{ratio:.2f}x smaller" if ratio > 1 else f"{1 / ratio:.2f}x larger"


def _score_change(baseline: Run, run: Run, confidence: float) -> Estimate | None:
    before, after = baseline.samples.get("score"), run.samples["score"]
    if before is None or len(before) != len(after):
        return None
    return estimates.paired_difference(after, before, "fraction").at(confidence)


def _score_words(baseline: Run, run: Run, change: Estimate | None, confidence: float) -> str:
    if change is None:
        return ""
    before, after = baseline.samples["score"], run.samples["score"]
    gained = sum(a > b for a, b in zip(after, before, strict=True))
    lost = sum(a < b for a, b in zip(after, before, strict=True))
    binary = set(before) | set(after) <= {0.0, 1.0}
    surely = estimates.mcnemar(gained, lost) < 1 - confidence if binary else not change.covers(0.0)
    if not surely:
        least = power.smallest(partial(power.of_scores(before, after, confidence), change.n))
        return f"no measurable quality change, n={change.n}{_shows(least, 'score')}"
    direction, points = "up" if change.value > 0 else "down", 100 * abs(change.value)
    return f"score {direction} {points:.1f} points ({gained} won, {lost} lost, n={change.n})"


def _shows(least: float | None, metric: str) -> str:
    """The smallest change that would have been seen; nothing where the least would."""
    if least is None:
        return " (too few to show any)"
    return f" ({power.amount(least, metric)} would show)" if least else ""


def perplexity_change(baseline: Run, run: Run, confidence: float = CONFIDENCE) -> Estimate | None:
    """By how much the perplexity's logarithm differs, in nats a token, windows paired; None where it cannot be said."""
    before, after = baseline.samples.get("nll"), run.samples.get("nll")
    if not before or not after or len(before) != len(after):
        return None
    # Weighted by tokens, as the perplexities themselves are: their logarithms differ by just this.
    moved = [a - b for a, b in zip(after, before, strict=True)]
    return estimates.ratio_of_sums(moved, run.samples["tokens"], "nats/token").at(confidence)


def _perplexity_words(change: Estimate | None, confidence: float) -> str:
    if change is None:
        return ""
    if not math.isfinite(change.value):
        return "broken: its likelihoods are not numbers"
    if change.n >= 2 and not change.enough:
        return f"too little text to tell the quality (n={change.n})"
    if change.covers(0.0):
        least = power.smallest(partial(power.of_interval(change, confidence), change.n), most=MOST)
        return f"no measurable quality change, n={change.n}{_shows(least and math.expm1(least), 'perplexity')}"
    percent, low, high = (100 * math.expm1(min(each, 50.0)) for each in (change.value, change.low, change.high))
    if percent > 0:
        return f"perplexity {percent:.1f} % higher [{low:.1f}, {high:.1f}], n={change.n}"
    return f"perplexity {-percent:.1f} % lower [{-high:.1f}, {-low:.1f}], n={change.n}"
