"""How long the sensitivity of every layer takes against applying and scoring every cell, and how near it comes.

python benchmarks/sensitivity.py

The naive way is timed on some cells drawn at random, in the same run, and its time scaled to all of them.
"""

import random
import time

import numpy as np
from common import write_result

import workbench as wb
from workbench.layers import calibration
from workbench.layers.sensitivity import WINDOWS, read_windows, sensitivity
from workbench.layers.step import LayerStep
from workbench.measurement.likelihood import likelihoods
from workbench.runtime.reader import Span
from workbench.steps import prune, quantize

CELLS = 16


def main() -> None:
    """RTN, which needs no calibration and so is the hardest to beat, and Wanda."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text("data/prose", window=128, calibration=16, test=4)
    steps = (quantize.RTN(head=False), prune.Wanda())
    write_result("sensitivity", {step.label: compare(base, text, step) for step in steps})


def compare(base: wb.Variant, text: wb.Text, step: LayerStep) -> dict[str, object]:
    """The table's time and the naive one's, and both figures for the cells drawn."""
    if step.needs_data:
        calibration.statistics(base, text)  # both ways find it cached
    started = time.perf_counter()
    found = sensitivity(base, text, step)
    ours = time.perf_counter() - started
    windows = read_windows(base, text, WINDOWS).tolist()
    spans = [Span(tuple(window[:1]), tuple(window[1:])) for window in windows]
    cells = [(row, column) for row in range(len(found.layers)) for column in range(len(found.strengths))]
    drawn = random.Random(0).sample(cells, CELLS)
    started = time.perf_counter()
    children = []
    for row, column in drawn:
        others = ",".join(layer for index, layer in enumerate(found.layers) if index != row)
        one = step.model_copy(update={step.strength: found.strengths[column], "exclude": others})
        children.append(base.apply(one, text))
    measured = likelihoods([base, *children], [spans] * (1 + CELLS))[1:]
    naive = (time.perf_counter() - started) / CELLS * len(cells)
    kls = [sum(each.kl) / sum(each.tokens) for each in measured]
    pairs = [(float(found.kl[cell]), kl) for cell, kl in zip(drawn, kls, strict=True)]
    estimated, exact = np.log(np.array(pairs)).T
    return {
        "cells": len(cells),
        "seconds": round(ours, 1),
        "naive_seconds": round(naive, 1),
        "naive_over_ours": round(naive / ours, 1),
        "median_ratio_to_measured": round(float(np.exp(np.median(estimated - exact))), 3),
        "correlation_of_logarithms": round(float(np.corrcoef(estimated, exact)[0, 1]), 3),
        "estimated_and_measured": [
            {"layer": found.layers[row], found.knob: found.strengths[column], "kl": pair}
            for (row, column), pair in zip(drawn, pairs, strict=True)
        ],
    }


if __name__ == "__main__":
    main()
