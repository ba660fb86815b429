"""`wb.compare` of the baseline and three variants against one process a variant with lm-eval's HFLM (naive.py).

Both sides start from nothing (imports and loading included), score the same 16 support tickets by likelihood and by
generated answer, and time eight requests of 16 tokens. The workbench runs before and after the scripts.

    python benchmarks/compare.py
"""

import json
import subprocess
import sys
import time
from typing import Any

from common import ROOT, write_result
from naive import EXAMPLES, NEW_TOKENS, ROUNDS

VARIANTS = ("base", "NF4", "Int8", "Int8Dynamic")
OURS = f"""
import warnings; warnings.simplefilter("ignore")
import workbench as wb
from workbench.steps import quantize
base = wb.load(device="cpu")
variants = [base] + [base.apply(step()) for step in (quantize.NF4, quantize.Int8, quantize.Int8Dynamic)]
task = wb.read_task("data/tickets")
result = wb.compare(variants, task, examples={EXAMPLES}, rounds={ROUNDS}, new_tokens={NEW_TOKENS}, store=False)
print(result.to_json())
"""


def run(arguments: list[str]) -> tuple[float, Any]:
    """Seconds and the last line's JSON of one Python process."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - started, json.loads(done.stdout.strip().splitlines()[-1])


def naive() -> tuple[float, dict[str, dict[str, float]]]:
    """All variants, one process after another."""
    results = {name: run(["benchmarks/naive.py", name]) for name in VARIANTS}
    return sum(seconds for seconds, _ in results.values()), {name: found for name, (_, found) in results.items()}


def main() -> None:
    """Measure both sides, and lay their numbers side by side."""
    times: dict[str, list[float]] = {"naive": [], "workbench": []}
    for side in ("workbench", "naive", "workbench"):
        seconds, found = naive() if side == "naive" else run(["-c", OURS])
        times[side].append(seconds)
        if side == "naive":
            theirs = found
        else:
            runs = found["runs"]
    numbers = {}
    for name, record in zip(VARIANTS, runs, strict=True):
        ours = {metric: record["estimates"][metric] for metric in theirs[name]}
        numbers[name] = {
            metric: {
                "workbench": [round(each[key], 4) for key in ("value", "low", "high")],
                "naive": round(theirs[name][metric], 4),
            }
            for metric, each in ours.items()
        }
    write_result(
        "compare",
        {
            "seconds": {side: [round(each, 1) for each in values] for side, values in times.items()},
            "times_less_wall_time": round(times["naive"][0] / (sum(times["workbench"]) / 2), 2),
            "numbers": numbers,
        },
    )


if __name__ == "__main__":
    main()
