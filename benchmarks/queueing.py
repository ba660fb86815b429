"""What the queueing model predicts beside what is measured: 95 % of the first tokens and of whole answers, under load.

python benchmarks/queueing.py [--requests 60] [--rounds 1] [--rows 8] [--loads 0.3 0.55 0.8] [--replicas 1]

The times of a replica are calibrated twice: from `wb.batching`, and fitted to loads of their own that come before and
after those that are compared. The prediction is a replay: the simulated replicas are given the measured run's
arrivals and lengths, so that chance is the same on both sides.
"""

import argparse
import asyncio
import logging
import random
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import write_result

import workbench as wb
from workbench.measurement.latency import requests
from workbench.serving.queueing import Load, capacity, summary
from workbench.serving.simulation import simulate
from workbench.serving.times import Sample, ServiceTimes
from workbench.steps.runtime import Batch

SIZES, LENGTHS, ANSWERS = (1, 2, 4, 8), (16, 32, 64), (4, 8, 16, 32)  # at once; tokens
SHOWN = ("ttft p50", "ttft p95", "latency p50", "latency p95", "gap p50", "gap p95")


def speakers(base: wb.Variant, replicas: int) -> list[Any]:
    """Who answers: one in this process. A service's replicas go here, each with an `astream` of its own."""
    if replicas != 1:
        raise SystemExit("Several replicas need a service: give what answers for each of them in speakers().")
    return [base]


class Prompts:
    """Prompts of several lengths, none twice: what was read once is not read again."""

    def __init__(self, variant: wb.Variant, text: wb.Text) -> None:
        self._variant = variant
        self._ids = [token for window in text.windows(variant.tokenizer, "train") for token in window]

    def drawn(self, chance: random.Random) -> str:
        """Some words from anywhere in the text."""
        length = chance.choice(LENGTHS)
        start = chance.randrange(len(self._ids) - length)
        return self._variant.decode(self._ids[start : start + length])


async def ask(speaker: Any, replica: int, prompt: str, tokens: int) -> Sample:
    """One request and what came when."""
    arrival, times = time.perf_counter(), []
    answer = None
    async for piece in speaker.astream(prompt, max_new_tokens=tokens, temperature=0.0):
        times.append(time.perf_counter())
        answer = piece.answer or answer
    assert answer is not None
    return Sample(arrival, times[0], times[-1], answer.prompt_tokens, len(answer.token_ids), replica)


async def loaded(who: Sequence[Any], prompts: Prompts, rate: float, requests: int, seed: int) -> list[Sample]:
    """Requests that come at random, whether or not earlier ones were answered; the replicas get them in turn."""
    chance = random.Random(seed)
    begin, due, tasks = time.perf_counter(), 0.0, []
    for number in range(requests):
        due += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
        replica = number % len(who)
        prompt, tokens = prompts.drawn(chance), chance.choice(ANSWERS)
        tasks.append(asyncio.create_task(ask(who[replica], replica, prompt, tokens)))
    return list(await asyncio.gather(*tasks))


def replayed(times: ServiceTimes, samples: Sequence[Sample], replicas: int) -> dict[str, float]:
    """What the model says of the same arrivals and lengths."""
    ordered = sorted(samples)
    arrivals = np.array([each.arrival - ordered[0].arrival for each in ordered])
    prompts, answers = (np.array([each[at] for each in ordered]) for at in (3, 4))
    return summary(simulate(times, arrivals, prompts, answers, replicas=replicas, policy="round robin"))


def measured(samples: Sequence[Sample]) -> dict[str, float]:
    """The same quantities as they were."""
    first = np.array([each.first - each.arrival for each in samples])
    whole = np.array([each.end - each.arrival for each in samples])
    gap = np.array([(each.end - each.first) / (each.answer - 1) for each in samples if each.answer > 1])
    spent = {"ttft": first, "latency": whole, "gap": gap}
    return {f"{name} p{q}": float(np.percentile(each, q)) for name, each in spent.items() for q in (50, 95)}


def beside(found: dict[str, float], predicted: dict[str, float]) -> dict[str, list[float]]:
    """Measured, predicted, and by how much it is off."""
    return {
        name: [round(found[name], 4), round(predicted[name], 4), round(predicted[name] / found[name] - 1, 3)]
        for name in SHOWN
    }


def main() -> None:
    """The default model at several shares of what it can answer."""
    options = argparse.ArgumentParser()
    options.add_argument("--requests", type=int, default=60)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--rows", type=int, default=8)
    options.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.55, 0.8])
    options.add_argument("--replicas", type=int, default=1)
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu").apply(Batch(rows=chosen.rows))
    text = wb.read_text("data/prose", window=128, calibration=4, test=32)
    write_result("queueing", compared(base, text, chosen))


def compared(base: wb.Variant, text: wb.Text, chosen: argparse.Namespace) -> dict[str, Any]:
    """Calibrate, measure every load, calibrate again for what drifts, and replay."""
    who, prompts = speakers(base, chosen.replicas), Prompts(base, text)
    asked = [len(base.encode(each)) for each in requests(base, text, SIZES[-1])]
    curve = wb.batching(base, text, SIZES, rounds=2, new_tokens=12)
    known = {"batching": ServiceTimes.measured(curve, float(np.mean(asked)), rows=chosen.rows)}

    def load(rate: float, count: int, seed: int) -> list[Sample]:
        return asyncio.run(loaded(who, prompts, rate, count, seed))

    rough = capacity(known["batching"], Load(rate=1, prompts=asked, answers=ANSWERS))
    light = load(0.25 * rough, chosen.requests // 2, seed=1)
    dense = load(0.7 * rough, chosen.requests, seed=2)
    first = ServiceTimes.fitted([*light, *dense], rows=chosen.rows)
    lengths = Load(rate=1, prompts=[each.prompt for each in dense], answers=[each.answer for each in dense])
    most = chosen.replicas * capacity(first, lengths)
    runs = {
        f"{share:.0%}": [load(share * most, chosen.requests, seed=10 + number) for number in range(chosen.rounds)]
        for share in chosen.loads
    }
    dense += load(0.7 * rough, chosen.requests, seed=3)
    known["samples"] = ServiceTimes.fitted([*light, *dense], rows=chosen.rows)
    if chosen.replicas > 1:
        known["samples"] = known["samples"].contended([*light, *dense], chosen.replicas)
    return {
        "times": {name: {"read": each.read, "gap": each.gap} for name, each in known.items()},
        "requests_per_s_at_most": round(capacity(known["samples"], lengths, chosen.replicas), 3),
        "loads": {
            share: [
                {name: beside(measured(each), replayed(times, each, chosen.replicas)) for name, times in known.items()}
                for each in found
            ]
            for share, found in runs.items()
        },
    }


if __name__ == "__main__":
    main()
