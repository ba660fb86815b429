"""How small a change so many examples can show, and how many a question needs before it is asked.

For answers that are right or wrong the test is McNemar's in its exact form, whose chance to see a change is summed over
all outcomes: Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43,
1987. For all else it is the interval of a mean difference; what it sees follows a noncentral t, by its normal
approximation: Johnson and Welch, "Applications of the non-central t-distribution", Biometrika 31, 1940.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from workbench.core import estimate
from workbench.core.estimate import CONFIDENCE, ENOUGH, Estimate, student_t

POWER = 0.8  # of the times, a change that is there shall be seen
LEAST = 1e-6  # change that anybody would look for
MOST = 20_000  # examples that anybody would ask
MANY = 32  # samples from which a bootstrap reaches as far as Student's t
DRAWN = 50  # times that its reach is tried with fewer
NORMAL = NormalDist()
Seen = Callable[[int, float], float]  # how often so many examples show such a change


@dataclass(frozen=True)
class Power:
    """How well so many examples answer a question.

    Attributes:
        variant: the question's, against the baseline.
        metric: "score" or "perplexity".
        change: that is asked for: of the share that is right, or of the perplexity, as a fraction.
        n: examples or windows that were scored.
        chance: how often so many would show such a change, if it is there.
        smallest: change that they show four times in five; None where they show none.
        needed: how many show the change four times in five; None where 20,000 do not.
    """

    variant: str
    metric: str
    change: float
    n: int
    chance: float
    smallest: float | None
    needed: int | None

    def __str__(self) -> str:
        what = amount(self.change, self.metric)
        least = "no change of any size" if self.smallest is None else f"{amount(self.smallest, self.metric)} or more"
        many = f"{self.needed:,} are needed" if self.needed else f"more than {MOST:,} are needed"
        return (
            f"'{self.variant}', {self.metric}: {self.n} examples show a change of {what} in {self.chance:.0%} of the "
            f"cases, and {least} four times in five; for {what}, {many}."
        )

    __repr__ = __str__


def amount(change: float, metric: str) -> str:
    """A change in words."""
    percent = f"{100 * abs(change):.2g}" if abs(change) < 0.1 else f"{100 * abs(change):.0f}"
    return f"{percent} points" if metric == "score" else f"{percent} %"


def of_scores(before: Sequence[float], after: Sequence[float], confidence: float = CONFIDENCE) -> Seen:
    """How often examples like these show a change of the mean score."""
    if set(before) | set(after) <= {0.0, 1.0}:
        differing = sum(a != b for a, b in zip(after, before, strict=True)) / len(after)
        return lambda n, change: of_answers(n, change, differing, confidence)
    spread = float(np.std(np.subtract(after, before), ddof=1)) if len(after) > 1 else 0.0
    return lambda n, change: of_means(n, change, spread, confidence)


def of_interval(found: Estimate, confidence: float = CONFIDENCE) -> Seen:
    """How often measurements like these show a change, from the interval that they gave."""
    spread = (found.high - found.low) / 2 / _reach(max(2, found.n), confidence) * math.sqrt(found.n)
    return lambda n, change: of_means(n, change, spread, confidence)


def of_answers(n: int, change: float, differing: float, confidence: float = CONFIDENCE) -> float:
    """How often McNemar's exact test sees a change.

    Args:
        n: examples, each answered by both.
        change: of the share that is answered right, -1 to 1.
        differing: share of the examples that one of the two answers right and the other wrong; at least the change.
        confidence: one less the chance to see what is not there.
    """
    differing = min(1.0, max(differing, abs(change)))
    if not differing or n < 1:
        return 0.0
    won, found = (1 + abs(change) / differing) / 2, 0.0
    for pairs, chance in enumerate(_binomial(n, differing)):
        most = _most_lost(pairs, confidence) if chance > 1e-9 else -1
        if most >= 0:
            outcomes = _binomial(pairs, won)
            found += chance * float(outcomes[: most + 1].sum() + outcomes[pairs - most :].sum())
    return min(1.0, found)


def of_means(n: int, change: float, spread: float, confidence: float = CONFIDENCE) -> float:
    """How often the interval of a mean difference leaves out zero.

    Args:
        n: samples of the difference.
        change: its mean.
        spread: its standard deviation.
        confidence: of the interval.
    """
    if n < ENOUGH:
        return 0.0
    if not spread:
        return float(change != 0)
    freedom, distance = n - 1, abs(change) * math.sqrt(n) / spread
    reach = _reach(n, confidence)
    wide = math.sqrt(1 + reach**2 / 2 / freedom)
    near = reach * (1 - 1 / 4 / freedom)
    return NORMAL.cdf((distance - near) / wide) + NORMAL.cdf((-distance - near) / wide)


@cache
def _reach(n: int, confidence: float) -> float:
    """How many standard errors the interval of a mean of `n` normal samples reaches.

    Student's t of many; of few less, for a bootstrap cannot reach beyond its samples.
    """
    known = student_t((1 + confidence) / 2, n - 1)
    if n >= MANY:
        return known
    rows = np.random.default_rng(0).standard_normal((DRAWN, n))
    found = [estimate.mean(row.tolist(), "").at(confidence) for row in rows]
    errors = rows.std(axis=1, ddof=1) / math.sqrt(n)
    return float(np.mean([(each.high - each.low) / 2 for each in found] / errors))


def smallest(seen: Callable[[float], float], most: float = 1.0) -> float | None:
    """The smallest change that is seen often enough; None where the largest is not, 0 where any is."""
    if seen(most) < POWER:
        return None
    if seen(LEAST) >= POWER:
        return 0.0
    low, high = LEAST, most
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) >= POWER else (middle, high)
    return high


def needed(seen: Callable[[int], float]) -> int | None:
    """The fewest examples with which a change is seen often enough; None where `MOST` are too few."""
    high = ENOUGH
    while seen(high) < POWER:
        if high == MOST:
            return None
        high = min(2 * high, MOST)
    low = ENOUGH - 1 if high == ENOUGH else high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) >= POWER else (middle, high)
    return high


def _binomial(n: int, p: float) -> np.ndarray:
    """Chances of 0 to `n` successes ``(n + 1,)``."""
    k = np.arange(n + 1)
    if p in (0.0, 1.0):
        return np.where(k == n * p, 1.0, 0.0)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    found: np.ndarray = np.exp(logs[n] - logs - logs[::-1] + k * math.log(p) + (n - k) * math.log1p(-p))
    return found


@cache
def _most_lost(pairs: int, confidence: float) -> int:
    """How many of so many differing examples the worse one may win for the test to see a change; -1 for never."""
    chances = 2 * np.cumsum(_binomial(pairs, 0.5))  # McNemar's, of 0, 1, 2 ... won by the worse
    return int((chances < 1 - confidence).sum()) - 1
