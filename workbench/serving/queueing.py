"""What users would wait with so many replicas: a queueing model of their times and of the load, simulated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from workbench.core import estimate
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.core.value import Value
from workbench.serving.simulation import POLICIES, Trace, simulate
from workbench.serving.times import ServiceTimes

if TYPE_CHECKING:
    import pandas

REQUESTS, REPETITIONS = 2_000, 10
SETTLING = 0.2  # of the requests come before the queues are as they stay
QUANTILES = (50, 95, 99)
MOST_REPLICAS = 1_000


class Load(Value):
    """Requests that come, whether or not earlier ones were answered: at random (Poisson), with lengths as seen.

    Attributes:
        rate: requests a second, in all.
        prompts: tokens of prompts, of which one is drawn for each request.
        answers: tokens of answers; where there are as many as prompts, those at one place belong together.
    """

    rate: float = Field(gt=0, le=1e13)
    prompts: tuple[int, ...]
    answers: tuple[int, ...]

    @field_validator("prompts", "answers")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or max(value) > 1 << 24:
            raise InvalidInput("A load needs lengths of prompts and answers, each of at least 1 token.")
        return value

    def but(self, **changes: Any) -> Self:
        """The same with some fields changed."""
        return self.model_copy(update=changes)

    def drawn(self, requests: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seconds of arrival and tokens of prompts and answers, each ``(requests,)``."""
        chance = np.random.default_rng(seed)
        arrivals = np.cumsum(chance.exponential(1 / self.rate, requests))
        which = chance.integers(0, len(self.prompts), requests)
        paired = len(self.prompts) == len(self.answers)
        other = which if paired else chance.integers(0, len(self.answers), requests)
        return arrivals, np.array(self.prompts)[which], np.array(self.answers)[other]


class Setting(Value):
    """What is simulated.

    Attributes:
        replicas: how many.
        policy: who gets a request.
        slower: how many times slower the first replicas are than the others.
        requests: of each repetition.
        repetitions: with other arrivals; they make the intervals.
        seed: of the first one.
    """

    replicas: int = Field(default=1, ge=1, le=MOST_REPLICAS)
    policy: str = "power of two choices"
    slower: tuple[float, ...] = ()
    requests: int = Field(default=REQUESTS, ge=10, le=1_000_000)
    repetitions: int = Field(default=REPETITIONS, ge=1, le=1000)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.policy not in POLICIES:
            raise InvalidInput(f"There is no policy '{self.policy[:60]}': use one of {', '.join(POLICIES)}.")
        if len(self.slower) > self.replicas or any(not 0.01 <= each <= 1000 for each in self.slower):
            raise InvalidInput("`slower` has a number above 0 for each of the first replicas, such as (3.0,).")
        return self


@dataclass(frozen=True)
class Forecast:
    """What users would wait.

    Attributes:
        times: of each replica.
        load: what comes.
        setting: how it was simulated.
        capacity: requests a second above which queues only grow.
        estimates: ``ttft``, ``latency`` and ``gap`` (the mean time from token to token of an answer) in seconds, each
            with `` p50``, `` p95`` and `` p99``; ``utilisation``, the share of time that a replica works; ``rows``
            decoded side by side on average in a replica; ``refused``, the share of requests.
    """

    times: ServiceTimes
    load: Load
    setting: Setting
    capacity: float
    estimates: dict[str, Estimate]

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    @property
    def stable(self) -> bool:
        """Whether queues stay finite."""
        return self.load.rate < self.capacity

    def __str__(self) -> str:
        count = self.setting.replicas
        whose = f"{count} replica{'s' * (count > 1)}"
        if not self.stable:
            each = self.capacity / count
            return (
                f"{self.load.rate:.3g} requests/s are more than {whose} can answer, {self.capacity:.3g}/s: the queue "
                f"grows until requests are refused ({self['refused'].value:.0%} here); at least "
                f"{int(self.load.rate / each) + 1} replicas are needed."
            )
        first, gap = self["ttft p95"], self["gap p95"]
        return (
            f"{whose} at {self.load.rate / self.capacity:.0%} of their {self.capacity:.3g} requests/s: 95 % of the "
            f"first tokens within {first.value:.3g} s [{first.low:.3g}, {first.high:.3g}], "
            f"{1e3 * gap.value:.3g} ms from token to token, {self['refused'].value:.2%} refused."
        )

    def table(self) -> "pandas.DataFrame":
        """One row a quantity, with its interval and unit."""
        import pandas

        rows = [{"value": each.value, "low": each.low, "high": each.high, "unit": each.unit} for each in self]
        return pandas.DataFrame(rows, index=pandas.Index(list(self.estimates), name="quantity"))

    def __iter__(self) -> Iterator[Estimate]:
        return iter(self.estimates.values())


def forecast(times: ServiceTimes, load: Load, replicas: int = 1, **setting: Any) -> Forecast:
    """Simulate replicas under a load.

    Args:
        times: of each replica.
        load: what comes.
        replicas: how many.
        setting: others of `Setting`: policy, slower, requests, repetitions, seed.

    Raises:
        InvalidInput: a setting out of range, or a contention that was measured for fewer replicas.
    """
    chosen = Setting(replicas=replicas, **setting)
    most = capacity(times, load, chosen.replicas, chosen.slower)
    runs = []
    for number in range(chosen.repetitions):
        seed = chosen.seed + number
        trace = simulate(
            times, *load.drawn(chosen.requests, seed), replicas=chosen.replicas, policy=chosen.policy,
            slower=chosen.slower, seed=seed,
        )  # fmt: skip
        runs.append(summary(trace, int(SETTLING * chosen.requests)))
    units = {"utilisation": "fraction", "refused": "fraction", "rows": "rows"}
    estimates = {
        name: estimate.mean([run[name] for run in runs], units.get(name, "s"), seed=chosen.seed) for name in runs[0]
    }
    return Forecast(times, load, chosen, most, estimates)


def summary(trace: Trace, settling: int = 0) -> dict[str, float]:
    """The quantities of a `Forecast`, of the requests behind the first ones."""
    kept = slice(settling, None)
    arrival, first, end = trace.arrival[kept], trace.first[kept], trace.end[kept]
    answered = ~np.isnan(end)
    found: dict[str, float] = {}
    tokens = trace.answers[kept][answered] - 1
    spent = {
        "ttft": (first - arrival)[answered],
        "latency": (end - arrival)[answered],
        "gap": ((end - first)[answered] / np.maximum(1, tokens))[tokens > 0],
    }
    for name, seconds in spent.items():
        values = np.percentile(seconds, QUANTILES) if len(seconds) else (0.0,) * len(QUANTILES)
        found |= {f"{name} p{q}": float(value) for q, value in zip(QUANTILES, values, strict=True)}
    whole = float(np.nanmax(trace.end, initial=trace.arrival[-1]))
    decoded = float(np.nansum(trace.end - trace.first))
    found["utilisation"] = sum(trace.busy) / len(trace.busy) / whole
    found["rows"] = decoded / whole / len(trace.busy)
    found["refused"] = float(1 - answered.mean())
    return found


def capacity(times: ServiceTimes, load: Load, replicas: int = 1, slower: Sequence[float] = ()) -> float:
    """Requests a second that replicas answer when there are always more: above it queues only grow.

    One replica is simulated with all requests there from the beginning; the middle of that run counts.

    Raises:
        InvalidInput: contention was measured for fewer replicas.
    """
    if times.contention and len(times.contention) < replicas:
        raise InvalidInput(
            f"Contention was measured for {len(times.contention)} replicas on this machine, not for {replicas}: "
            "measure that, or take it out where each has a machine to itself."
        )
    requests = max(1000, 20 * times.rows)
    _, prompts, answers = load.drawn(requests, seed=0)
    alone = times.but(waiting=requests, contention=())
    trace = simulate(alone, np.zeros(requests), prompts, answers)
    ends = np.sort(trace.end)
    begin, over = int(0.2 * requests), int(0.8 * requests)
    rate = (over - begin) / max(float(ends[over] - ends[begin]), 1e-12)
    speeds = sum(1 / each for each in slower) + replicas - len(slower)
    return rate * speeds / (times.contention[replicas - 1] if times.contention else 1.0)
