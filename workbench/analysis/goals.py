"""What is wanted of a variant: a metric to be best at, and bounds on others, such as ``>= 0.98 * baseline``."""

import re
from collections.abc import Mapping

from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.core.value import Value
from workbench.measurement import scales

UP, DOWN = 1, -1
BETTER = {
    "ttft": DOWN, "inter_token_latency": DOWN, "throughput": UP, "peak_memory": DOWN,
    "weight_bytes": DOWN, "bits_per_weight": DOWN, "perplexity": DOWN, "kl_to_baseline": DOWN, "same_top_token": UP,
    "score": UP, "flips": DOWN,
}  # fmt: skip
COUNTED = ("weight_bytes", "bits_per_weight", "peak_memory")  # what has no uncertainty
NONE_AT_BASELINE = ("kl_to_baseline", "same_top_token", "flips")  # what the baseline has no figure of
UNITS = {  # of a metric's unit, those that its bound may be said in
    "bytes": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "s": {"": 1.0, "s": 1.0, "ms": 1e-3},
    "tokens/s": {"": 1.0, "tokens/s": 1.0},
    "fraction": {"": 1.0, "%": 0.01, "points": 0.01},
    "bits": {"": 1.0, "bits": 1.0},
    "nats/token": {"": 1.0, "nats": 1.0},
}
WORDS = re.compile(r"\s*(<=|>=)\s*([0-9][0-9_.]*(?:e[+-]?[0-9]+)?)\s*([a-z/%]*)\s*(\*\s*baseline)?\s*", re.IGNORECASE)


class Constraint(Value):
    """A bound on a metric.

    Attributes:
        metric: its name.
        at_most: whether it is an upper bound, else a lower one.
        amount: in the metric's unit, or times the baseline's value.
        of_baseline: which of the two.
        words: as they were written.
    """

    metric: str
    at_most: bool
    amount: float
    of_baseline: bool = False
    words: str = ""

    @classmethod
    def read(cls, metric: str, words: str) -> "Constraint":
        """A bound in words: ``<= 100 MB``, ``<= 30 ms``, ``>= 0.98 * baseline``.

        Raises:
            InvalidInput: there is no such metric, or the words are none.
        """
        check_metric(metric, "A constraint")
        found = WORDS.fullmatch(words) if isinstance(words, str) else None
        unit = found[3].lower() if found else ""
        kind = scales.METRICS[metric][1]
        if found is None or unit not in UNITS.get(kind, {"": 1.0}) or (unit and found[4]):
            raise InvalidInput(
                f"The constraint on {metric} is {str(words)[:60]!r}, but it is said as in '<= 100 MB', '<= 30 ms' or "
                "'>= 0.98 * baseline'."
            )
        if found[4] and metric in NONE_AT_BASELINE:
            raise InvalidInput(f"{metric} is a distance from the baseline already: bound it by a number.")
        try:
            amount = float(found[2].replace("_", "")) * UNITS.get(kind, {"": 1.0})[unit]
        except ValueError:
            raise InvalidInput(f"The constraint on {metric} has no number: {words[:60]!r}.") from None
        if kind == "fraction" and not found[4] and amount > 1:
            raise InvalidInput(f"{metric} is a share of 1: bound it by '60 %' or '0.6', not by {words[:60]!r}.")
        return cls(
            metric=metric, at_most=found[1] == "<=", amount=amount, of_baseline=bool(found[4]), words=words.strip()
        )

    def limit(self, baseline: Mapping[str, Estimate]) -> float:
        """The bound in the metric's unit."""
        return self.amount * baseline[self.metric].value if self.of_baseline else self.amount

    def excess(self, value: float, baseline: Mapping[str, Estimate]) -> float:
        """By what part of the bound a value is beyond it; 0 or less where it keeps to it."""
        limit = self.limit(baseline)
        beyond = value - limit if self.at_most else limit - value
        return beyond / abs(limit) if limit else beyond

    def broken(self, found: Estimate, baseline: Mapping[str, Estimate]) -> bool:
        """Whether all of an interval is beyond the bound; of what was counted, or measured often enough."""
        return self._sure(found) and self.excess(found.low if self.at_most else found.high, baseline) > 0

    def kept(self, found: Estimate, baseline: Mapping[str, Estimate]) -> bool:
        """Whether all of an interval keeps to the bound, likewise."""
        return self._sure(found) and self.excess(found.high if self.at_most else found.low, baseline) <= 0

    def _sure(self, found: Estimate) -> bool:
        return self.metric in COUNTED or found.enough

    def __str__(self) -> str:
        return f"{self.metric} {self.words}"


def constraints_of(given: Mapping[str, str | tuple[str, ...] | list[str]]) -> tuple[Constraint, ...]:
    """All bounds, one or several a metric.

    Raises:
        InvalidInput: one cannot be read, or two of a metric leave nothing between them.
    """
    found = []
    for metric, words in given.items():
        several = list(words) if isinstance(words, list | tuple) else [words]
        found += [Constraint.read(metric, each) for each in several]
    for upper in found:
        for lower in found:
            alike = upper.metric == lower.metric and upper.of_baseline == lower.of_baseline
            if alike and upper.at_most and not lower.at_most and lower.amount > upper.amount:
                raise InvalidInput(f"'{upper}' and '{lower}' contradict each other: nothing is both.")
    return tuple(found)


def check_metric(name: str, what: str) -> None:
    """Raise `InvalidInput` unless a metric can be aimed at."""
    if name not in BETTER:
        known = ", ".join(metric for metric in scales.METRICS if metric in BETTER)
        raise InvalidInput(f"{what} names a metric, not '{str(name)[:60]}': one of {known}.")


def seconds_of(budget: str | float) -> float:
    """A time such as ``20min``, ``90 s`` or ``1.5h``, or a number of seconds.

    Raises:
        InvalidInput: it is none.
    """
    if isinstance(budget, int | float) and budget > 0:
        return float(budget)
    words = re.fullmatch(r"\s*([0-9.]+)\s*(s|sec|min|m|h)?\s*", str(budget))
    try:
        found = float(words[1]) * {"min": 60.0, "m": 60.0, "h": 3600.0}.get(words[2] or "s", 1.0) if words else 0.0
    except ValueError:
        found = 0.0
    if not found > 0:
        raise InvalidInput(f"The budget is a time such as '20min' or '90s', not {str(budget)[:60]!r}.")
    return found
