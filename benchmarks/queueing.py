"""What the queueing model predicts beside what is measured: p95 of first tokens and whole answers of 1, 2, 3 replicas.

python benchmarks/queueing.py [--requests 60] [--loads 0.3 0.55 0.8] [--replicas 1 2 3]    # about 20 minutes on 2 cores

The times of one replica are fitted to load tests of their own, a light and a dense one, as are those of several that
share this machine. The prediction is a replay: the simulated replicas are given the measured run's arrivals and
lengths, so that chance is the same on both sides.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import questions, write_result

import workbench as wb
from workbench.serving.queueing import Load, capacity, summary
from workbench.serving.simulation import simulate
from workbench.serving.times import Sample, ServiceTimes

ROWS, ANSWER = 16, 16  # side by side at most; tokens
ROUGH = 0.8  # requests a second of one replica, before anything is known
SHOWN = ("ttft p95", "latency p95", "gap p95")


def loaded(service: Any, rate: float, requests: int, seed: int) -> wb.LoadTest:
    """About so many requests at a rate."""
    test = wb.load_test(service, questions(), rate=rate, seconds=requests / rate, new_tokens=ANSWER, seed=seed)
    assert not test.stages[0].errors, test.stages[0].errors
    return test


def beside(samples: Sequence[Sample], times: ServiceTimes, replicas: int) -> dict[str, list[float]]:
    """Measured, predicted for the same arrivals and lengths, and by how much it is off."""
    arrival, first, end, prompt, answer, _ = np.array(samples, float).T
    trace = simulate(times, arrival, prompt.astype(int), answer.astype(int), replicas=replicas, policy="round robin")
    predicted = summary(trace)
    spent = {"ttft": first - arrival, "latency": end - arrival, "gap": (end - first) / (answer - 1)}
    found = {f"{name} p95": float(np.percentile(each, 95)) for name, each in spent.items()}
    return {
        name: [round(found[name], 4), round(predicted[name], 4), round(predicted[name] / found[name] - 1, 3)]
        for name in SHOWN
    }


def after(*loads: list[Sample]) -> list[Sample]:
    """Loads on one clock, one after another."""
    start, found = 0.0, []
    for load in loads:
        shifted = ((start + each.arrival, start + each.first, start + each.end) for each in load)
        found += [Sample(*clock, *each[3:]) for clock, each in zip(shifted, load, strict=True)]
        start = max((each.end for each in found), default=0.0) + 1.0
    return found


def compared(base: wb.Variant, replicas: int, alone: ServiceTimes | None, chosen: argparse.Namespace) -> dict[str, Any]:
    """Calibrate, measure every load, calibrate again for what drifts, and replay."""
    count = chosen.requests
    with wb.serve(base, replicas=replicas, policy="round robin", threads=1, rows=ROWS, port=0) as service:
        loaded(service, 1.0, 2 * replicas + 4, seed=9)  # all of them have answered
        rough = ROUGH * min(replicas, 1.6)
        light = [] if alone else loaded(service, 0.25 * rough, count // 2, seed=1).samples
        dense = loaded(service, 0.8 * rough, count, seed=2).samples

        def fitted(*more: list[Sample]) -> ServiceTimes:
            times = alone or ServiceTimes.fitted(after(light, dense, *more), rows=ROWS)
            return times if replicas == 1 else times.contended(after(dense, *more), replicas)

        lengths = Load(rate=1, prompts=[each.prompt for each in dense], answers=[each.answer for each in dense])
        most = capacity(fitted(), lengths, replicas)
        runs = {
            f"{share:.0%}": loaded(service, share * most, count, seed=10 + number).samples
            for number, share in enumerate(chosen.loads)
        }
        later = loaded(service, 0.8 * rough, count, seed=3).samples
    times = fitted(later)
    return {
        "times": times,
        "shown": {
            "read": times.read,
            "gap": times.gap,
            "contention": times.contention,
            "requests/s at most": round(capacity(times, lengths, replicas), 3),
            "loads": {share: beside(each, times, replicas) for share, each in runs.items()},
        },
    }


def main() -> None:
    """The default model with several numbers of replicas, at several shares of what they can answer."""
    options = argparse.ArgumentParser()
    options.add_argument("--requests", type=int, default=60)
    options.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.55, 0.8])
    options.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 3])
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu")
    alone: ServiceTimes | None = None
    shown: dict[str, Any] = {}
    for replicas in sorted({1, *chosen.replicas}):
        found = compared(base, replicas, alone, chosen)
        alone = alone or found["times"]
        shown[f"replicas: {replicas}"] = found["shown"]
        write_result("queueing", {"what": "measured, predicted, predicted / measured - 1", **shown})


if __name__ == "__main__":
    main()
