"""How often a promised bound holds: in simulated searches whose truth is known, and in one real search.

python benchmarks/promises.py [--repetitions 20 --budget 8min]    # about 12 minutes on 2 cores

Simulated: 40 variants keep a known share of what the base answers right; half of 300 questions are searched on, the
other half confirms. What is promised is held against the known share, beside what the search's own figures would say.
Real: a search on the first part of WikiText-2's validation text, whose best is measured on the rest of it.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import public_data, rounded, write_result

import workbench as wb
from workbench.analysis.found import Search
from workbench.analysis.goals import constraints_of
from workbench.analysis.promise import standing
from workbench.analysis.search import CONFIRMED
from workbench.analysis.space import free
from workbench.analysis.trials import Trial
from workbench.core import estimate
from workbench.core.estimate import Estimate
from workbench.measurement.runs import Run
from workbench.steps import prune, quantize

VARIANTS, EXAMPLES, RIGHT = 40, 150, 0.6  # tried; in each half; of the base's answers
SCORE = constraints_of({"score": ">= 0.9 * baseline"})
PERPLEXITY = "<= 1.15 * baseline"


def a_run(name: str, marks: np.ndarray, size: float) -> Run:
    """Of made-up answers."""
    found = {"score": estimate.mean(marks.tolist(), "fraction"), "weight_bytes": Estimate.exact(size, "bytes")}
    return Run(
        variant=name, source="", recipe=[], task="t", fingerprint="f", environment={}, settings={}, session="s",
        measured_at="", samples={"score": marks.tolist()}, estimates=found,
    )  # fmt: skip


def simulated(seed: int) -> dict[str, bool | None]:
    """One search: whether what its own figures say, and what the confirming run promises, is so; None for no word."""
    chance = np.random.default_rng(seed)
    kept = chance.uniform(0.75, 1.0, VARIANTS)  # share of right answers that stay right; the smaller, the fewer bytes
    halves = [(chance.random(EXAMPLES) < RIGHT).astype(float) for _ in range(2)]
    answers = [[before * (chance.random(EXAMPLES) < share) for before in halves] for share in kept]
    sizes = 1e8 * kept
    seen = {"score": estimate.mean(halves[0].tolist(), "fraction"), "weight_bytes": Estimate.exact(2e8, "bytes")}
    trials = [
        Trial(number=at, params={}, recipe=[{"at": at}], estimates=a_run("", each[0], sizes[at]).estimates)
        for at, each in enumerate(answers)
    ]
    found = Search("base", "weight_bytes", SCORE, seen, tuple(trials))
    base, said = a_run("base", halves[1], 2e8), {each.number: "" for each in found.candidates[:CONFIRMED]}
    for number in said:
        said[number] = standing(SCORE[0], a_run("", answers[number][1], sizes[number]), base)
    best = [number for number, each in said.items() if each == "kept"]
    first = found.feasible[0].number if found.feasible else None
    promised = min(best, key=lambda number: sizes[number], default=None)
    return {
        "by the search alone": None if first is None else bool(kept[first] >= SCORE[0].amount),
        "confirmed as kept": None if promised is None else bool(kept[promised] >= SCORE[0].amount),
    }


def counted(found: list[bool | None]) -> dict[str, int]:
    """How many were promised, and of these how many hold."""
    return {"promised": sum(each is not None for each in found), "hold": sum(each is True for each in found)}


def real(budget: str, folder: Path) -> dict[str, Any]:
    """A search of the default model, and its best on text that neither half had."""
    whole = public_data("wikitext2-valid.txt").read_text()
    for name, part in (("first", whole[: 2 * len(whole) // 3]), ("rest", whole[2 * len(whole) // 3 :])):
        (folder / f"{name}.txt").write_text(part)
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(folder / "first.txt", window=256, calibration=8, test=48)
    other = wb.read_text(folder / "rest.txt", window=256, test=96)
    space = [
        [None, prune.DropBlocks, prune.Width],
        [free(quantize.RTN(), "bits", "group_size"), free(quantize.HQQ(), "bits", "group_size"), quantize.Int8()],
    ]
    bounds = {"perplexity": PERPLEXITY}
    found = wb.search(
        base, text, goal="weight_bytes", constraints=bounds, space=space, budget=budget, store=folder / "trials.jsonl"
    )
    if found.best is None:
        return {"answer": found.sentence, "trials": len(found.trials)}
    compared = wb.compare([base, found.recipe.apply(base, text)], other)
    ratio = [each["perplexity"].value / compared.baseline["perplexity"].value for each in compared.runs][1]
    return {
        "answer": found.sentence,
        "trials": len(found.trials),
        "ended at": dict(Counter(each.ended for each in found.trials)),
        "standings": {f"trial {each.number}": each.standing for each in found.promises},
        "perplexity over baseline, searched on": round(
            found.best.estimates["perplexity"].value / found.seen["perplexity"].value, 3
        ),
        "on text that neither half had": round(ratio, 3),
        "bytes": rounded(compared.runs[1]["weight_bytes"], 0)[0],
        "bound": PERPLEXITY,
    }


def main() -> None:
    """Simulated and real."""
    options = argparse.ArgumentParser()
    options.add_argument("--repetitions", type=int, default=20)
    options.add_argument("--budget", default="8min")
    given = options.parse_args()
    rows: dict[str, Any] = {}
    for count in (given.repetitions, 50 * given.repetitions):
        runs = [simulated(seed) for seed in range(count)]
        rows[f"{count} simulated searches"] = {name: counted([each[name] for each in runs]) for name in runs[0]}
    with tempfile.TemporaryDirectory() as folder:
        rows["real search"] = real(given.budget, Path(folder))
    write_result("promises", rows)


if __name__ == "__main__":
    main()
