"""Decoding speed after removing blocks, channels or vocabulary, against what the removed bytes allow.

python benchmarks/structured.py

A token also pays for starting its operations, however small they are. A model of the same blocks with next to nothing
in them shows how much; what bytes and this fixed cost allow together is given beside what bytes alone
would. Leaving out whole blocks saves their fixed cost, too.
"""

from common import read_bandwidth, write_result

import workbench as wb
from workbench.steps import prune

STEPS = [
    prune.DropBlocks(share=0.2),
    prune.DropBlocks(share=0.4),
    prune.Width(mlp=0.25),
    prune.Width(mlp=0.5, heads=0.34),
    prune.Vocabulary(),
]
HOLLOW = [prune.Width(mlp=0.9, heads=0.67, hidden=0.9), prune.Vocabulary(keep=512)]


def main() -> None:
    """One interleaved comparison; allowed is the ratio of the bytes that a token reads."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text("data/prose", window=128, calibration=16, test=4)
    hollow = base
    for step in HOLLOW:
        hollow = hollow.apply(step, text)
    variants = [base, *(base.apply(step, text) for step in STEPS), hollow.renamed("hollow")]
    result = wb.compare(variants, text, rounds=14, new_tokens=24, store=False)
    dense, least = result.baseline, result.runs[-1]
    time, fixed = (run["inter_token_latency"].value for run in (dense, least))
    rows = {}
    for run, verdict in zip(result.runs[1:-1], list(result.verdicts().values())[:-1], strict=True):
        assert verdict.speed is not None
        allowed = dense["weight_bytes"].value / run["weight_bytes"].value
        with_fixed_cost = fixed + (time - fixed) / allowed
        rows[run.variant] = {
            "recipe": str(run.recipe),
            "weight_bytes": run["weight_bytes"].value,
            "allowed_by_bytes": round(allowed, 3),
            "speed_up": [round(each, 3) for each in (verdict.speed.value, verdict.speed.low, verdict.speed.high)],
            "share_of_allowed": round(verdict.speed.value / allowed, 3),
            "allowed_by_bytes_and_fixed_cost": round(time / with_fixed_cost, 3),
            "perplexity": round(run["perplexity"].value, 2),
        }
    found = {
        "read_bandwidth_GB_per_s": round(read_bandwidth() / 1e9, 1),
        "dense": {"weight_bytes": dense["weight_bytes"].value, "perplexity": round(dense["perplexity"].value, 2),
                  "inter_token_latency_s": time},
        "hollow": {"weight_bytes": least["weight_bytes"].value, "inter_token_latency_s": fixed},
        "variants": rows,
    }  # fmt: skip
    write_result("structured", found)


if __name__ == "__main__":
    main()
