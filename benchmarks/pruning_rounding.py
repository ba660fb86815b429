"""How far next to nothing moves the perplexity of a 2:4 pruned model.

    WANDA_REPO=... python benchmarks/pruning_rounding.py

The token embeddings get noise of 1e-4 of their size, a fortieth of the most that storing them in bfloat16 would change.
A flipped near-tie between two weights changes the inputs of every later block, which flips more. How far both
implementations move, and whether they move together, is what is shown.
"""

import copy
import statistics
import sys
from typing import Any

import reference_pruning as reference
import torch
from common import public_data, write_result
from torch import Tensor

import workbench as wb
from workbench.core.progress import Progress
from workbench.layers import activations
from workbench.steps import prune

NUDGES = 3  # the first is none
NOISE = 1e-4
STEP = prune.Wanda(sparsity=0.5, pattern="2:4")


def nudged(base: Any, seed: int) -> Any:
    """A copy of the model with a little noise on its embeddings; unchanged for seed 0."""
    model = copy.deepcopy(base)
    if seed:
        weight: Tensor = model.get_input_embeddings().weight
        weight.mul_(1 + NOISE * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def ours(model: Any, windows: list[list[int]]) -> None:
    """Prune a model in place, each block on what the pruned blocks before it give."""
    for block in activations.walk(model, windows, Progress(), hessians=False, rerun=True):
        STEP.replace_block(model, block.layers, frozenset(block.layers))


@torch.no_grad()
def main() -> None:
    """Wanda 2:4 in both implementations, from the same nudged models."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=16, test=32)
    calibration, test = (text.windows(base.tokenizer, split) for split in ("calibration", "test"))
    perplexities: dict[str, list[float]] = {"authors": [], "ours": []}
    agreement: dict[str, list[float]] = {"authors": [], "ours": []}
    first: dict[str, Tensor] | None = None
    for seed in range(NUDGES):
        for who in perplexities:
            model = nudged(base.model, seed)
            if who == "authors":
                reference.prune(model, base.tokenizer, calibration, "wanda", 0.5, 2, 4)
            else:
                ours(model, calibration)
            masks = reference.masks(model)
            first = first or masks
            same = sum(int((masks[path] == first[path]).sum()) for path in masks)
            agreement[who].append(round(same / sum(mask.numel() for mask in masks.values()), 5))
            perplexities[who].append(round(reference.perplexity(model, test), 3))
            print(seed, who, perplexities[who][-1], agreement[who][-1], file=sys.stderr, flush=True)
        authors, own = perplexities["authors"], perplexities["ours"]
        found = {
            "perplexity": perplexities,
            "masks_as_the_authors_without_a_nudge": agreement,
            "authors_highest_over_lowest": round(max(authors) / min(authors), 4),
            "ours_over_authors_of_means": round(statistics.mean(own) / statistics.mean(authors), 4),
        }
        write_result("pruning_rounding", found)


if __name__ == "__main__":
    main()
