"""How often a change is seen: as `measurement.power` predicts it, and in simulated comparisons as verdicts judge them.

python benchmarks/power.py [--repetitions 1000]    # about 2 minutes on 2 cores

Scores are drawn right or wrong for both variants; perplexities as windows whose difference is normal. The verdict is
the product's own, so that intervals, tests and thresholds are those that a user meets.
"""

import argparse
from typing import Any

import numpy as np
from common import write_result

from workbench.measurement import power
from workbench.measurement.runs import Run
from workbench.measurement.verdict import verdict

SCORES = [(40, 0.25, 0.35), (100, 0.10, 0.20), (100, 0.15, 0.15), (300, 0.05, 0.10), (300, 0.08, 0.30)]
WINDOWS = [(8, 1.6), (16, 1.0), (32, 0.6), (100, 0.35)]  # windows, and the change over the spread of differences


def a_run(name: str, **samples: list[float]) -> Run:
    """With these samples."""
    return Run(
        variant=name, source="", recipe=[], task="t", fingerprint="f", environment={}, settings={}, session="s",
        measured_at="", samples=samples,
    )  # fmt: skip


def seen(before: dict[str, list[float]], after: dict[str, list[float]]) -> bool:
    """Whether the verdict says that quality changed."""
    said = verdict(a_run("a", **before), a_run("b", **after)).words
    return not any("no measurable quality change" in each for each in said)


def main() -> None:
    """Every setting, predicted beside simulated."""
    options = argparse.ArgumentParser()
    options.add_argument("--repetitions", type=int, default=1000)
    count = options.parse_args().repetitions
    chance, rows = np.random.default_rng(0), list[dict[str, Any]]()
    for n, change, differing in SCORES:
        found = 0
        for _ in range(count):
            kinds = chance.choice(3, n, p=[(differing + change) / 2, (differing - change) / 2, 1 - differing])
            before, after = np.where(kinds == 1, 1.0, 0.0), np.where(kinds == 0, 1.0, 0.0)
            found += seen({"score": before.tolist()}, {"score": after.tolist()})
        predicted = power.of_answers(n, change, differing)
        rows.append(
            {"score": f"n={n}, change {change}, differing {differing}", "predicted": predicted, "found": found / count}
        )
    for n, change in WINDOWS:
        found = 0
        for _ in range(count):
            before = chance.normal(3.0, 0.3, n)
            after = before + chance.normal(0.02 * change, 0.02, n)
            found += seen({"nll": before.tolist(), "tokens": [1.0] * n}, {"nll": after.tolist(), "tokens": [1.0] * n})
        rows.append(
            {
                "perplexity": f"n={n}, change {change} spreads",
                "predicted": power.of_means(n, change, 1.0),
                "found": found / count,
            }
        )
    for row in rows:
        row |= {name: round(row[name], 3) for name in ("predicted", "found")}
        row["off by points"] = round(100 * (row["found"] - row["predicted"]), 1)
    write_result(
        "power",
        {"repetitions": count, "most off, points": max(abs(row["off by points"]) for row in rows), "rows": rows},
    )


if __name__ == "__main__":
    main()
