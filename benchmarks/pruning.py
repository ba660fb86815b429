"""Perplexity after pruning beside the authors' own code, identical masks, and what each method costs in time.

    WANDA_REPO=... python benchmarks/reference_pruning.py out/reference   # then copy reference.json to the results
    WANDA_REPO=... python benchmarks/pruning.py                             # reads results/reference_pruning.json

Calibrates on the first 16 windows of 512 tokens of WikiText-2's validation text and scores the last 32. Wanda is timed
against the authors' functions in the same run, on the first blocks, in turns.
"""

import copy
import json
import math
import sys
import time
from typing import Any

import reference_pruning as reference
import torch
from common import RESULTS, public_data, write_result
from torch import nn

import workbench as wb
from workbench.core.progress import Progress
from workbench.layers import activations
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.models.packed import dense_weight, linear_layers
from workbench.steps import prune
from workbench.variant import Variant

STEPS = {
    "magnitude unstructured": prune.Magnitude(sparsity=0.5),
    "magnitude 2:4": prune.Magnitude(sparsity=0.5, pattern="2:4"),
    "wanda unstructured": prune.Wanda(sparsity=0.5, sequential=True),
    "wanda 2:4": prune.Wanda(sparsity=0.5, pattern="2:4", sequential=True),
    "sparsegpt unstructured": prune.SparseGPT(sparsity=0.5, sequential=True),
    "sparsegpt 2:4": prune.SparseGPT(sparsity=0.5, pattern="2:4", sequential=True),
    "wanda unstructured, one pass": prune.Wanda(sparsity=0.5),
    "sparsegpt unstructured, one pass": prune.SparseGPT(sparsity=0.5),
}
BLOCKS, ROUNDS = 6, 3  # of the timing against the authors' code


def calibration_forward(base: Variant, text: wb.Text) -> float:
    """Seconds of one plain forward of the blocks over the calibration windows, nothing watched."""
    windows = text.windows(base.tokenizer, "calibration")
    started = time.perf_counter()
    with torch.no_grad():
        for at in range(0, len(windows), 4):
            base.model.base_model(torch.tensor(windows[at : at + 4]), use_cache=False)
    return time.perf_counter() - started


def shortened(base: Variant, blocks: int) -> Any:
    """A copy of the model with its first blocks only."""
    model = copy.deepcopy(base.model)
    model.model.layers = nn.ModuleList(list(model.model.layers)[:blocks])
    model.config.num_hidden_layers = blocks
    return model


def wanda_times(base: Variant, text: wb.Text) -> dict[str, list[float]]:
    """Own seconds of Wanda, beyond its forwards, ours and theirs in turns; and the share of masks that agree."""
    windows = text.windows(base.tokenizer, "calibration")
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "same_mask": []}
    for turn in range(ROUNDS + 1):
        theirs, ours = shortened(base, BLOCKS), shortened(base, BLOCKS)
        found = reference.prune(theirs, base.tokenizer, windows, "wanda", 0.5)
        own = own_time(ours, windows)
        pairs = zip(linear_layers(ours), linear_layers(theirs), strict=True)
        same = [float(((dense_weight(a) == 0) == (dense_weight(b) == 0)).float().mean()) for (_, a), (_, b) in pairs]
        if turn:  # the first turn warms up
            times["ours"].append(own)
            times["theirs"].append(found["statistics"] + found["selection"])
            times["same_mask"].append(min(same))
    return times


def own_time(model: Any, windows: list[list[int]]) -> float:
    """Seconds that our Wanda spends on statistics and masks: its whole time less that of its forwards."""
    step, spent = prune.Wanda(sparsity=0.5), 0.0
    adding = activations._Sums.add

    def timed(self: Any, rows: torch.Tensor) -> None:
        nonlocal spent
        started = time.perf_counter()
        adding(self, rows)
        spent += time.perf_counter() - started

    activations._Sums.add = timed
    try:
        for block in activations.walk(model, windows, Progress(), hessians=False, rerun=True):
            started = time.perf_counter()
            step.replace_block(model, block.layers, frozenset(block.layers))
            spent += time.perf_counter() - started
    finally:
        activations._Sums.add = adding
    return spent


def main() -> None:
    """Perplexities of every method, then times."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=16, test=32)
    published = json.loads((RESULTS / "reference_pruning.json").read_text())["rows"]
    theirs = {f"{row['method']} {row['pattern']}".strip(): row["perplexity"] for row in published}
    forward = calibration_forward(base, text)
    variants, took = {"dense": base}, {"dense": 0.0}
    for name, step in STEPS.items():
        started = time.perf_counter()
        variants[name] = base.apply(step, text)
        took[name] = time.perf_counter() - started
        print(name, round(took[name], 1), file=sys.stderr, flush=True)
    scored = likelihoods(list(variants.values()), [task_spans(base, text)] * len(variants))
    rows: dict[str, Any] = {}
    for name, found in zip(variants, scored, strict=True):
        perplexity = math.exp(sum(found.nll) / sum(found.tokens))
        authors = theirs.get(name)
        rows[name] = {
            "perplexity": round(perplexity, 3),
            "authors": authors and round(authors, 3),
            "ratio": authors and round(perplexity / authors, 4),
            "kl_nats_per_token": round(sum(found.kl) / sum(found.tokens), 4),
            "seconds": round(took[name], 1),
            "seconds_over_calibration_forward": round(took[name] / forward, 2),
        }
    times = wanda_times(base, text)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    write_result(
        "pruning",
        {
            "calibration_forward_seconds": round(forward, 2),
            "variants": rows,
            "wanda_own_time": {
                "blocks": BLOCKS,
                "ours_seconds": [round(each, 3) for each in times["ours"]],
                "authors_seconds": [round(each, 3) for each in times["theirs"]],
                "authors_over_ours": [round(each, 2) for each in ratios],
                "least_agreement_of_masks": min(times["same_mask"]),
            },
        },
    )


if __name__ == "__main__":
    main()
