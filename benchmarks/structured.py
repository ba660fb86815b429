"""Decoding speed after removing blocks, channels or vocabulary, against what the removed bytes allow.

python benchmarks/structured.py
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


def main() -> None:
    """One interleaved comparison; allowed is the ratio of the bytes that a token reads."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text("data/prose", window=128, calibration=16, test=4)
    variants = [base, *(base.apply(step, text) for step in STEPS)]
    result = wb.compare(variants, text, rounds=14, new_tokens=24, store=False)
    dense = result.baseline
    rows = {}
    for run, verdict in zip(result.runs[1:], result.verdicts().values(), strict=True):
        assert verdict.speed is not None
        allowed = dense["weight_bytes"].value / run["weight_bytes"].value
        rows[run.variant] = {
            "recipe": str(run.recipe),
            "weight_bytes": run["weight_bytes"].value,
            "allowed_by_bytes": round(allowed, 3),
            "speed_up": [round(each, 3) for each in (verdict.speed.value, verdict.speed.low, verdict.speed.high)],
            "share_of_allowed": round(verdict.speed.value / allowed, 3),
            "perplexity": round(run["perplexity"].value, 2),
        }
    found = {
        "read_bandwidth_GB_per_s": round(read_bandwidth() / 1e9, 1),
        "dense": {"weight_bytes": dense["weight_bytes"].value, "perplexity": round(dense["perplexity"].value, 2),
                  "inter_token_latency_s": dense["inter_token_latency"].value},
        "variants": rows,
    }  # fmt: skip
    write_result("structured", found)


if __name__ == "__main__":
    main()
