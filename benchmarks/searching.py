"""A search against an exhaustive grid: how much of the front it finds for how much of the work, beside other ways.

python benchmarks/searching.py [--replay]    # about 10 minutes on 2 cores; with --replay seconds

The grid is every combination of four ways to prune and sixteen to round. Each is measured once; the searches are then
replayed on what was measured, so that all see the same figures, and time is the sum of what they measured and of what
drawing took. The front is between size and distance from the model (KL); its hypervolume counts from the worst of both.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import optuna
from common import RESULTS, public_data, write_result

import workbench as wb
from workbench.analysis.found import Search
from workbench.analysis.goals import constraints_of
from workbench.analysis.search import _tried, _with_baseline, halves
from workbench.analysis.space import free, space_of
from workbench.analysis.study import Study
from workbench.analysis.trials import Draw, Judge, Trial
from workbench.steps import prune, quantize

SEEDS, SHARE = 5, 0.19  # of the evaluations
PRUNED = [None, prune.DropBlocks(share=0.1), prune.DropBlocks(share=0.2), prune.Width(mlp=0.25)]
BITS, SIZES = (3, 4, 5, 8), (32, 64, 128, 256)
SPACE = [PRUNED, free(quantize.RTN(), bits=BITS, group_size=SIZES)]


def hypervolume(trials: Iterable[Trial], worst: tuple[float, float]) -> float:
    """Of what is better in both than the worst corner (Zitzler and Thiele, 1999), in bytes times nats."""
    found, ceiling = 0.0, worst[1]
    for size, distance in sorted(map(point, trials)):
        if size < worst[0] and distance < ceiling:
            found += (worst[0] - size) * (ceiling - distance)
            ceiling = distance
    return found


def point(trial: Trial) -> tuple[float, float]:
    """Bytes of the weights, and distance from the model."""
    return trial.estimates["weight_bytes"].value, trial.estimates["kl_to_baseline"].value


class Recorded:
    """Stands in for the judge: gives what was measured before."""

    def __init__(self, known: dict[str, Trial]) -> None:
        self.known = known

    def judged(self, draws: Sequence[Draw], progress: Any) -> list[Trial]:
        """The trials of recipes."""
        return [self.known[json.dumps(each.trial.recipe)].model_copy(update={"number": each.number}) for each in draws]


def ours(known: dict[str, Trial], seen: Any, count: int, seed: int) -> tuple[Trial, ...]:
    """Trials of the product's search until so many are different; those that come again took no time."""
    found = Search("base", "weight_bytes", (), seen)
    study = Study(optuna, found.objectives, space_of(SPACE), seed)
    while different(found.trials) < count and len(found.trials) < 20 * count:
        (trial,) = _tried(study.drawn([len(found.trials)]), found, Recorded(known), wb.Progress())
        study.told(trial, found)
        found = Search("base", "weight_bytes", (), seen, (*found.trials, trial))
    return found.trials


def plain(sampler: Any, known: dict[str, Trial], count: int) -> tuple[Trial, ...]:
    """The same with one of Optuna's own samplers, asked and told as its documentation has it."""
    study, space, found = optuna.create_study(directions=["minimize"] * 2, sampler=sampler), space_of(SPACE), []
    while different(found) < count and len(found) < 20 * count:
        asked = study.ask()
        trial = known[json.dumps([each.to_json() for each in space.suggested(asked)])]
        study.tell(asked, list(point(trial)))
        found.append(trial.model_copy(update={"seconds": 0.0}) if trial.recipe in [t.recipe for t in found] else trial)
    return tuple(found)


def different(trials: Sequence[Trial]) -> int:
    """How many recipes there are."""
    return len({json.dumps(each.recipe) for each in trials})


def measured(judge: Judge) -> dict[str, Trial]:
    """Every combination, by its recipe."""
    known: dict[str, Trial] = {}
    for one, bits, size in product(PRUNED, BITS, SIZES):
        rounding = quantize.RTN(bits=bits, group_size=size)
        recipe = wb.Recipe([rounding] if one is None else [one, rounding])
        (trial,) = judge.judged([Draw(len(known), {}, recipe)], wb.Progress())
        known[json.dumps(trial.recipe)] = trial
        print(len(known), recipe, round(trial.seconds, 1), file=sys.stderr, flush=True)
    return known


def recorded() -> dict[str, Trial]:
    """The same, as the last result has it."""
    rows = json.loads((RESULTS / "searching.json").read_text())["result"]["grid"]
    return {json.dumps(each["recipe"]): Trial.model_validate(each) for each in rows}


def main() -> None:
    """The grid, then every way to search on it."""
    options = argparse.ArgumentParser()
    options.add_argument("--replay", action="store_true", help="search on the grid that was measured before")
    given = options.parse_args()
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=4, test=16)
    seen, _, windows = halves(base, text)
    judge = _with_baseline(
        Judge(base, seen, windows, constraints_of({}), frozenset({"weight_bytes"}), {}), wb.Progress()
    )
    known = recorded() if given.replay else measured(judge)
    sizes, distances = zip(*map(point, known.values()), strict=True)
    worst = (max(sizes), max(distances))
    whole, spent = hypervolume(known.values(), worst), sum(each.seconds for each in known.values())
    count = round(SHARE * len(known))
    samplers = optuna.samplers
    ways: dict[str, Callable[[int], tuple[Trial, ...]]] = {
        "ours": lambda seed: ours(known, judge.seen, count, seed),
        "random": lambda seed: plain(samplers.RandomSampler(seed=seed), known, count),
        "NSGA-II": lambda seed: plain(samplers.NSGAIISampler(seed=seed, population_size=4), known, count),
        "TPE": lambda seed: plain(samplers.TPESampler(seed=seed, n_startup_trials=4), known, count),
    }
    rows = {}
    for name, way in ways.items():
        begun = time.perf_counter()
        runs = [way(1000 * seed) for seed in range(SEEDS)]
        drawing = (time.perf_counter() - begun) / SEEDS
        rows[name] = {
            "hypervolume": [round(hypervolume(each, worst) / whole, 3) for each in runs],
            "time": [round((sum(trial.seconds for trial in each) + drawing) / spent, 3) for each in runs],
        }
    write_result(
        "searching",
        {
            "configurations": len(known),
            "evaluations": count,
            "seconds": round(spent, 1),
            **rows,
            "grid": [each.model_dump(mode="json") for each in known.values()],
        },
    )


if __name__ == "__main__":
    main()
