"""How long a moved slider takes until sample text, divergence and perplexity are new, for the fast methods.

python benchmarks/live.py
"""

import statistics
import time

from common import write_result

import workbench as wb
from workbench.analysis.preview import preview
from workbench.layers import calibration
from workbench.steps import prune, quantize

MOVES = {
    "Magnitude": [prune.Magnitude(sparsity=each) for each in (0.3, 0.4, 0.5, 0.6, 0.7)],
    "Wanda": [prune.Wanda(sparsity=each) for each in (0.3, 0.4, 0.5, 0.6, 0.7)],
    "RTN": [quantize.RTN(bits=each) for each in (4, 3, 2, 5, 8)],
}


def main() -> None:
    """Every position of each slider, the first move left out: it fills caches."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text("data/prose", window=128, calibration=16, test=4)
    started = time.perf_counter()
    calibration.statistics(base, text)
    calibrated = time.perf_counter() - started
    rows = {}
    for name, steps in MOVES.items():
        preview(base, steps[-1], text)
        times = []
        for step in steps:
            started = time.perf_counter()
            preview(base, step, text)
            times.append(time.perf_counter() - started)
        rows[name] = {"median_seconds": round(statistics.median(times), 2), "slowest_seconds": round(max(times), 2)}
    write_result("live", {"calibration_pass_seconds": round(calibrated, 1), "moves": rows})


if __name__ == "__main__":
    main()
