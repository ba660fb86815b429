"""Run the tests: all that needs no GPU, real models and a browser included, then a GPU; one summary ends it.

Without a GPU its tests run on a pretended one, in a process of their own: torch must hear of it while it is imported.

Under CI, and only where the processor has more than AVX2, the tests of kernels are run once more as a processor with
AVX2 alone would run them. What stands behind the script's name goes to pytest.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "out" / "tests"
NONE_CHOSEN = 5  # pytest's exit code when a filter leaves no test


class Round(NamedTuple):
    """One call of pytest."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]


ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as many workers as cores
ALL = Round("all", ("-n", "auto", "--dist", "loadgroup", "--no-loadscope-reorder"), ONE_THREAD)
GPU = Round("GPU", ("-n", "auto", "-p", "tests.gpu.pretended", "tests/gpu"), ONE_THREAD)
KERNELS = Round(
    "kernels, AVX2",
    ("-n", "auto", "-m", "not model", "tests/models/packed", "tests/steps/quantize"),
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
)


class Outcome(NamedTuple):
    """How a round went."""

    name: str
    code: int
    seconds: float
    counts: dict[str, int]
    failed: list[str]


def run(each: Round, given: list[str]) -> Outcome:
    """Run a round, its output passed on as it comes."""
    report = REPORTS / f"{each.name.partition(',')[0]}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *each.arguments, f"--junitxml={report}", *given]
    environment = os.environ | each.environment
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # many processes compile the same modules
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    return Outcome(each.name, code, time.monotonic() - started, *read(report))


def read(report: Path) -> tuple[dict[str, int], list[str]]:
    """How many tests passed, failed and were skipped, and the names of those that failed."""
    counts, failed = {"passed": 0, "failed": 0, "skipped": 0}, []
    if not report.exists():  # pytest ended before it could write it
        return counts, failed
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[kind] += 1
        if kind == "failed":
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return counts, failed


def rounds() -> list[Round]:
    """What is run here."""
    return [ALL, GPU, *([KERNELS] if os.environ.get("CI") == "true" and more_than_avx2() else [])]


def more_than_avx2() -> bool:
    """Whether the processor has instructions that the usual one lacks."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return not {"avx512f", "avx_vnni"}.isdisjoint(flags)


def summary(outcomes: list[Outcome]) -> str:
    """A line a round, what failed, and the sums alone on the last line."""
    lines = [f"{'':16}{'passed':>8}{'failed':>8}{'skipped':>8}{'time':>10}"]
    for name, code, seconds, counts, _ in outcomes:
        numbers = "".join(f"{count:8}" for count in counts.values())
        broken = f"  pytest ended with code {code}" if code not in (0, 1, NONE_CHOSEN) else ""
        lines.append(f"{name:16}{numbers}{int(seconds) // 60:7}:{int(seconds) % 60:02}{broken}")
    lines += [f"FAILED {name}" for outcome in outcomes for name in outcome.failed]
    sums = {key: sum(outcome.counts[key] for outcome in outcomes) for key in outcomes[0].counts}
    return "\n".join([*lines, ", ".join(f"{count} {key}" for key, count in sums.items())])


def exit_code(outcomes: list[Outcome]) -> int:
    """0 when every round passed or was left without a test, and not all were."""
    codes = {outcome.code for outcome in outcomes}
    wrong = codes - {0, NONE_CHOSEN}  # negative where a signal ended it
    return 1 if wrong else 0 if 0 in codes else NONE_CHOSEN


if __name__ == "__main__":
    REPORTS.mkdir(parents=True, exist_ok=True)
    found = [run(each, sys.argv[1:]) for each in rounds()]
    print(f"\n{summary(found)}", flush=True)
    sys.exit(exit_code(found))
