"""This code against an older commit of its own: every use of a model, timed in turn in two processes.

Both load the embedded model once; only one works at a time, in an order that reverses every round (old new, new old,
...), after a round that is not counted. A ratio above 1 means that this code takes longer.

python benchmarks/before_after.py 616fa3f
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, rounded, write_result

from workbench.core.estimate import paired_ratio

ROUNDS = 10
# The modules of either age by the names that are used here.
CHILD = """
import json, logging, sys, time, warnings
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
import torch
import workbench as wb
from workbench.steps import finetune
try:
    from workbench.core.progress import Progress
    from workbench.layers.activations import walk
    from workbench.layers.calibration import calibration_windows
    from workbench.measurement.latency import time_request
    from workbench.measurement.likelihood import likelihoods, task_spans
    from workbench.measurement.scores import generate_answers
except ImportError:
    from workbench.activations import walk
    from workbench.calibration import calibration_windows
    from workbench.measure.answers import generate_answers
    from workbench.measure.latency import time_request
    from workbench.measure.likelihood import likelihoods, task_spans
    from workbench.progress import Progress

base = wb.load(device="cpu")
task = wb.read_task(sys.argv[1] + "/data/tickets")
text = wb.read_text(sys.argv[1] + "/data/prose", window=128, calibration=2, test=4)
page = wb.Text(name="page", text=text.text[:2500], window=48, calibration=2, test=1)
brief = task.model_copy(update={"max_new_tokens": 8})
short = task.model_copy(update={"test": task.test[:2], "max_new_tokens": 6})
windows = calibration_windows(base, text)
USES = {
    "one request, 24 tokens": lambda: base.generate("What is a lobster?", max_new_tokens=24),
    "a drawn token": lambda: len(
        base.generate("What is a lobster?", max_new_tokens=16, temperature=1.0, top_p=0.9).token_ids
    ),
    "timed request": lambda: time_request(base, "What is a lobster?", 16),
    "8 answers in a batch": lambda: generate_answers(base, brief, task.test[:8]),
    "likelihood of 4 windows": lambda: likelihoods([base], [task_spans(base, text)]),
    "calibration on 2 windows": lambda: list(walk(base.model, windows, Progress(), False, False)),
    "training on a page": lambda: base.apply(finetune.LoRA(epochs=1.0, batch_size=4), page).close(),
    "comparison on 2 examples": lambda: wb.compare([base, base], short, rounds=1, new_tokens=3, store=False),
}
print(json.dumps(list(USES)), flush=True)
for line in sys.stdin:
    started = time.perf_counter()
    made = USES[json.loads(line)]()  # how many tokens, where that is not the same for both
    print(json.dumps((time.perf_counter() - started) / (made if isinstance(made, int) else 1)), flush=True)
"""


class Code:
    """One age of the code in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(ROOT)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.uses: list[str] = self._answer()

    def seconds(self, use: str) -> float:
        """How long it takes now."""
        assert self._process.stdin
        print(json.dumps(use), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self):
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def main(commit: str) -> None:
    """Every use in both, in turn."""
    with tempfile.TemporaryDirectory() as place:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", place], input=archive, check=True)
        ages = {"before": Code(Path(place)), "after": Code(ROOT)}
        found = {}
        for use in ages["after"].uses:
            times: dict[str, list[float]] = {name: [] for name in ages}
            for number in range(ROUNDS + 1):
                for name in sorted(ages, reverse=bool(number % 2)):
                    taken = ages[name].seconds(use)
                    times[name] += [taken] if number else []  # the first round warms up
            found[use] = {
                "ratio": rounded(paired_ratio(times["after"], times["before"])),
                "seconds": {name: round(sorted(each)[len(each) // 2], 4) for name, each in times.items()},
            }
            print(use, found[use], flush=True)
        for each in ages.values():
            each.close()
    write_result("before_after", {"before": commit, "rounds": ROUNDS, "uses": found})


if __name__ == "__main__":
    main(*sys.argv[1:2])
