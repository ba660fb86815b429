"""How far rounding alone moves the perplexity of a pruned model: the same calibration windows in other orders.

    WANDA_REPO=... python benchmarks/pruning_rounding.py

The order of the windows changes nothing in either method but the rounding of sums in float32. A flipped near-tie
between two weights changes the inputs of every later block, which flips more. How much that makes in the end bounds how
closely any two implementations can be expected to agree; both are run here on the same orders.
"""

import copy
import random
import statistics
import sys
from typing import Any

import reference_pruning as reference
from common import public_data, write_result

import workbench as wb
from workbench import activations
from workbench.layerwise import LayerStep
from workbench.progress import Progress
from workbench.steps import prune

ORDERS = 3
CASES: dict[str, LayerStep] = {
    "wanda": prune.Wanda(sparsity=0.5, pattern="2:4"),
    "sparsegpt": prune.SparseGPT(sparsity=0.5, pattern="2:4"),
}


def ours(model: Any, windows: list[list[int]], step: LayerStep) -> None:
    """Prune a model in place, each block on what the pruned blocks before it give."""
    for block in activations.walk(model, windows, Progress(), hessians=step.hessians, rerun=True):
        step.replace_block(model, block.layers, frozenset(block.layers))


def main() -> None:
    """Both 2:4 methods, in both implementations, on every order."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=16, test=32)
    calibration, test = (text.windows(base.tokenizer, split) for split in ("calibration", "test"))
    found: dict[str, Any] = {
        method: {"authors": [], "ours": [], "same_mask_as_the_authors_first": {"authors": [], "ours": []}}
        for method in CASES
    }
    for method, step in CASES.items():
        first = None
        for seed in range(ORDERS):
            windows = random.Random(seed).sample(calibration, len(calibration)) if seed else calibration
            for who in ("authors", "ours"):
                model = copy.deepcopy(base.model)
                if who == "authors":
                    reference.prune(model, base.tokenizer, windows, method, 0.5, 2, 4)
                else:
                    ours(model, windows, step)
                masks = reference.masks(model)
                first = first or masks
                same = sum(int((masks[path] == first[path]).sum()) for path in masks)
                total = sum(mask.numel() for mask in masks.values())
                found[method]["same_mask_as_the_authors_first"][who].append(round(same / total, 5))
                found[method][who].append(round(reference.perplexity(model, test), 3))
                print(method, who, seed, found[method][who][-1], file=sys.stderr, flush=True)
        authors, own = (found[method][who] for who in ("authors", "ours"))
        found[method]["authors_spread"] = round(max(authors) / min(authors), 4)
        found[method]["median_ours_over_authors"] = round(statistics.median(own) / statistics.median(authors), 4)
        write_result("pruning_rounding", found)


if __name__ == "__main__":
    main()
