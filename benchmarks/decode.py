"""Decoding speed of every quantized variant against the full-precision baseline, and against what memory allows.

python benchmarks/decode.py
"""

import logging
import warnings

from common import read_bandwidth, write_result

import workbench as wb
from workbench.measurement import scales
from workbench.steps import quantize

STEPS = [
    quantize.Int8(),
    quantize.Int8Dynamic(),
    quantize.NF4(),
    quantize.FP4(),
    quantize.LLMInt8(),
    quantize.RTN(),
    quantize.GPTQ(group_size=128),
    quantize.RTN(bits=8),
]


def main() -> None:
    """One interleaved comparison on the default model."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu")
    text = wb.read_text("data/prose", window=256, calibration=8, test=12)
    variants = [base, *(base.apply(step, text) for step in STEPS)]
    result = wb.compare(variants, text, rounds=12, new_tokens=24, store=False)
    verdicts = result.verdicts()
    bandwidth = read_bandwidth()
    rows = {}
    for run in result.runs:
        rows[run.variant] = {
            metric: scales.text(metric, run[metric])
            for metric in ("inter_token_latency", "ttft", "weight_bytes", "perplexity", "same_top_token")
            if metric in run.estimates
        } | {
            "tokens_per_second": round(1 / run["inter_token_latency"].value, 1),
            "bound_tokens_per_second": round(bandwidth / run["weight_bytes"].value, 1),
            "verdict": str(verdicts.get(run.variant, "baseline")),
        }
    write_result("decode", {"read_bandwidth_GB_per_s": round(bandwidth / 1e9, 1), "variants": rows})


if __name__ == "__main__":
    main()
