"""What the benchmarks share: where the data is, what machine this is, and how a result is written."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from workbench.core.device import environment
from workbench.core.estimate import Estimate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("WORKBENCH_DATA") or ROOT.parent / "shared" / "data")


def public_data(name: str) -> Path:
    """A public data file; $WORKBENCH_DATA names the folder that holds it."""
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"{name} is not here: set WORKBENCH_DATA to the folder that holds it.")
    return path


def public_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a public JSONL file."""
    return [json.loads(line) for line in public_data(name).read_text().splitlines()]


def questions() -> wb.Task:
    """Questions of GSM8K, of many lengths, to be answered with anything."""
    rows = public_rows("gsm8k-test-300.jsonl")
    examples = [wb.Example(id=str(n), prompt=row["question"], answer="") for n, row in enumerate(rows)]
    return wb.Task(name="gsm8k", test=tuple(examples), scorer="contains")


def rounded(found: Estimate, digits: int = 4) -> list[float]:
    """An estimate and its interval, as they stand in a result."""
    return [round(each, digits) for each in (found.value, found.low, found.high)]


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every work in every round, the order reversed each round; one unmeasured round first."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        names = list(works) if number % 2 == 0 else list(works)[::-1]
        for name in names:
            times[name].append(seconds(works[name]))
    return times


def gemm_peak(size: int = 1536, rounds: int = 8) -> float:
    """FLOP/s of the best of several float32 matrix products."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(rounds))


def read_bandwidth(size: int = 1 << 30, rounds: int = 5) -> float:
    """Bytes/s of the best of several sums over memory far larger than any cache."""
    x = torch.ones(size // 4)
    return size / min(seconds(x.sum) for _ in range(rounds))


def write_result(name: str, found: dict[str, Any]) -> None:
    """Write the result beside the command and the environment, and print it."""
    given = (Path(each).name if Path(each).is_absolute() else each for each in sys.argv)  # no place of this machine
    record = {
        "command": f"python {' '.join(given)}",
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "measured": time.strftime("%Y-%m-%d"),
        "result": found,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
