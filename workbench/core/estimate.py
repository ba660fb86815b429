"""Numbers that are never alone: a value with its interval, its sample count and its unit.

Intervals are bootstrap percentile intervals at 99 %. One comparison reads half a dozen metrics a variant, and at 95 %
every fourth comparison of a variant with itself would show a "difference" somewhere. Verdicts on many variants at once
have longer ones (`among`). Percentiles are expanded for
small samples as in Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 3.3.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.99
RESAMPLES = 4000
WRONG = 0.05  # tables in which some column shows a difference that is none
ENOUGH = 6  # below this many samples an interval says nothing
Statistic = Callable[[np.ndarray], np.ndarray]  # (resamples, n) or (resamples, n, columns) -> (resamples,)


class Estimate(BaseModel):
    """One measured quantity.

    Attributes:
        value: the point estimate.
        low: lower end of the 99 % interval; equal to `value` for exact quantities such as bytes.
        high: upper end of the interval.
        n: how many samples stand behind it.
        unit: SI unit, or a word ("ratio", "fraction").
    """

    model_config = ConfigDict(frozen=True)
    value: float
    low: float
    high: float
    n: int
    unit: str

    @classmethod
    def exact(cls, value: float, unit: str) -> "Estimate":
        """A counted quantity, without uncertainty."""
        return cls(value=value, low=value, high=value, n=1, unit=unit)

    @property
    def enough(self) -> bool:
        """Whether there are enough samples for the interval to mean something."""
        return self.n >= ENOUGH

    def at(self, confidence: float) -> "Estimate":
        """The same with an interval of another confidence, each side of it as much longer as Student's t is."""
        if self.n < 2 or confidence == CONFIDENCE:
            return self
        longer = student_t((1 + confidence) / 2, self.n - 1) / student_t((1 + CONFIDENCE) / 2, self.n - 1)
        low, high = (self.value + longer * (end - self.value) for end in (self.low, self.high))
        return self.model_copy(update={"low": low, "high": high})

    def covers(self, value: float) -> bool:
        """Whether the interval holds the value; True as well when there are too few samples to say."""
        return not self.enough or self.low <= value <= self.high


def median(samples: Sequence[float], unit: str, seed: int = 0) -> Estimate:
    """Median of the samples with its bootstrap interval."""
    return bootstrap(samples, lambda rows: np.median(rows, axis=-1), unit, seed)


def mean(samples: Sequence[float], unit: str, seed: int = 0) -> Estimate:
    """Mean of the samples with its bootstrap interval."""
    return bootstrap(samples, lambda rows: rows.mean(axis=-1), unit, seed)


def quantile(samples: Sequence[float], q: float, unit: str, seed: int = 0) -> Estimate:
    """The q-quantile of the samples with its bootstrap interval."""
    return bootstrap(samples, lambda rows: np.quantile(rows, q, axis=-1), unit, seed)


def bootstrap(samples: Sequence[float], statistic: Statistic, unit: str, seed: int = 0) -> Estimate:
    """A statistic of independent samples, with its expanded-percentile bootstrap interval."""
    return _bootstrap(np.asarray(samples, dtype=float), statistic, unit, seed)


def _bootstrap(data: np.ndarray, statistic: Statistic, unit: str, seed: int) -> Estimate:
    """The same for data ``(n,)`` or ``(n, columns)`` whose rows are resampled whole."""
    n = len(data)
    if n == 0:
        raise ValueError("an estimate needs at least one sample")
    value = float(statistic(data[None])[0])
    if n == 1:
        return Estimate(value=value, low=value, high=value, n=1, unit=unit)
    drawn = statistic(data[resample_indices(n, seed)])
    tail = expanded_tail(n)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), n=n, unit=unit)


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float], unit: str, seed: int = 0) -> Estimate:
    """Sum of the numerators over sum of the denominators, pairs resampled together (nats over tokens of each text)."""
    pairs = np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=-1)
    return _bootstrap(pairs, lambda rows: rows[..., 0].sum(axis=-1) / rows[..., 1].sum(axis=-1), unit, seed)


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """Median ratio of positive paired samples (for two timings of one prompt: how many times slower)."""
    logs = np.log(np.asarray(numerator, float)) - np.log(np.asarray(denominator, float))
    return exponential(bootstrap(logs, lambda rows: np.median(rows, axis=-1), "ratio", seed).at(confidence))


def unpaired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """Ratio of the medians of two independent sets of positive samples."""
    top, bottom = np.log(np.asarray(numerator, float)), np.log(np.asarray(denominator, float))
    n = min(top.size, bottom.size)
    value = float(np.median(top) - np.median(bottom))
    if n < 2:
        return exponential(Estimate(value=value, low=value, high=value, n=n, unit="ratio"))
    drawn = np.median(top[resample_indices(top.size, seed)], axis=-1) - np.median(
        bottom[resample_indices(bottom.size, seed + 1)], axis=-1
    )
    tail = expanded_tail(n)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return exponential(Estimate(value=value, low=float(low), high=float(high), n=n, unit="ratio").at(confidence))


def among(variants: int) -> float:
    """The confidence at which each of so many variants is judged, so that one table in 20 errs in a column at most.

    Five at 99 % do so already; more need more (Bonferroni: Dunn, "Multiple Comparisons Among Means", JASA 56, 1961).
    """
    return max(CONFIDENCE, 1 - WRONG / max(1, variants))


def paired_difference(after: Sequence[float], before: Sequence[float], unit: str, seed: int = 0) -> Estimate:
    """Mean of the paired differences ``after - before``."""
    return mean(np.asarray(after, float) - np.asarray(before, float), unit, seed)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p-value: could ``gained`` wins against ``lost`` losses be chance?

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947, in its exact
    binomial form.
    """
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def resample_indices(n: int, seed: int) -> np.ndarray:
    """Bootstrap draws, shape ``(resamples, n)``; the same for the same seed."""
    return np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))


def expanded_tail(n: int) -> float:
    """Tail probability for a percentile interval that keeps its nominal coverage at small n (Hesterberg 2015)."""
    normal = NormalDist()
    t = student_t(1 - (1 - CONFIDENCE) / 2, n - 1)
    return normal.cdf(-math.sqrt(n / (n - 1)) * t)


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion around the normal (Abramowitz and Stegun, 26.7.5).

    Within 1 % from five degrees of freedom at 99.5 %; too small below, where `Estimate.enough` is False anyway.
    """
    z: float = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def exponential(logs: Estimate, unit: str = "ratio") -> Estimate:
    """Of a logarithm's estimate; one wild sample can push it out of range, and 700 is as good as infinite."""
    found = {end: math.exp(min(getattr(logs, end), 700.0)) for end in ("value", "low", "high")}
    return logs.model_copy(update=found | {"unit": unit})
