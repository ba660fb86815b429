"""The smallest number of replicas that keeps to the targets of a plan, by simulating them."""

from dataclasses import dataclass
from math import ceil

import numpy as np

from workbench.core.errors import InvalidInput
from workbench.serving.assumptions import Assumptions
from workbench.serving.queueing import Forecast, forecast
from workbench.serving.times import ServiceTimes

SIMULATED = 8  # replicas; more are simulated as so many with their share of the load, and wait no longer
REPETITIONS = 6
FEWEST, MOST = 1_500, 12_000  # requests of a repetition
STEP, TRIES = 1.3, 60
AROUND = (0.8, 0.9, 1.1, 1.25, 1.5)  # times the number found, for the figure


@dataclass(frozen=True)
class Trial:
    """So many replicas, and what users would wait with them.

    Attributes:
        replicas: without spare ones.
        found: by simulation.
        meets: whether the targets are kept, and no replica is used to more than it may be.
    """

    replicas: int
    found: Forecast
    meets: bool


def check_reachable(a: Assumptions, times: ServiceTimes) -> None:
    """Refuse targets that one request alone does not keep."""
    first = times.overhead + float(np.quantile(times.reading(np.array(a.load.prompts)), 0.95))
    gap = float(times.token(1))
    if first > a.target_first or gap > a.target_gap:
        raise InvalidInput(
            f"No number of replicas keeps to the targets: one request alone has its first token within {first:.3g} s "
            f"in 95 % of all cases, and {1e3 * gap:.3g} ms from token to token: raise target_first or target_gap, or "
            "take a faster device, more devices_per_replica, or a smaller model."
        )


def tried(a: Assumptions, times: ServiceTimes, alone: float) -> tuple[Trial, ...]:
    """Simulate numbers of replicas: more until one keeps to the targets, fewer down to the first, and some around."""
    least, found = max(1, ceil(a.load.rate / (a.most_load * alone) - 1e-9)), dict[int, Trial]()

    def trial(replicas: int) -> Trial:
        if replicas not in found:
            found[replicas] = _trial(a, times, replicas, allowed=replicas >= least)
        return found[replicas]

    low, high = least - 1, least
    for _ in range(TRIES):
        if trial(high).meets:
            break
        low, high = high, max(high + 1, ceil(STEP * high))
    else:
        raise InvalidInput("No number of replicas was found that keeps to the targets: raise one a little.")
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if trial(middle).meets else (middle, high)
    stable = int(a.load.rate / alone) + 1
    for count in sorted({max(stable, round(share * high)) for share in AROUND}):
        trial(count)
    return tuple(found[count] for count in sorted(found))


def _trial(a: Assumptions, times: ServiceTimes, replicas: int, allowed: bool) -> Trial:
    count = min(replicas, SIMULATED)
    load = a.load.but(rate=a.load.rate * count / replicas)
    going = load.rate * float(np.mean(load.answers)) * float(times.token(times.rows))
    requests = int(np.clip(5 * min(going, count * times.rows), FEWEST, MOST))
    found = forecast(times, load, count, policy=a.policy, requests=requests, repetitions=REPETITIONS)
    meets = (
        found["ttft p95"].value <= a.target_first
        and found["gap p95"].value <= a.target_gap
        and found["refused"].value <= a.target_refused
    )
    return Trial(replicas, found, meets and allowed)
