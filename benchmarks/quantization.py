"""Divergence from the dense model at the same bits a weight, and what each method takes to apply.

python benchmarks/quantization.py

Calibrates on the first 16 windows of 512 tokens of WikiText-2's validation text and scores the last 16.
"""

import sys
import time
from typing import Any

from common import public_data, write_result
from pruning import calibration_forward

import workbench as wb
from workbench.core.estimate import ratio_of_sums
from workbench.layers import calibration
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.measurement.memory import bits_per_weight
from workbench.models.packed import PackedLinear
from workbench.steps import quantize

GROUPS = {"bits": 4, "group_size": 128, "head": False}
STEPS = {
    "RTN 4-bit g128": quantize.RTN(**GROUPS),
    "HQQ 4-bit g128": quantize.HQQ(**GROUPS),
    "AWQ 4-bit g128": quantize.AWQ(**GROUPS),
    "GPTQ 4-bit g128": quantize.GPTQ(**GROUPS),
    "GPTQ 4-bit g128, without act-order": quantize.GPTQ(**GROUPS, act_order=False),
    "GPTQ 4-bit g128, sequential": quantize.GPTQ(**GROUPS, sequential=True),
    "SignRound 4-bit g128, 50 steps": quantize.SignRound(**GROUPS, steps=50),
    "RTN 3-bit g128": quantize.RTN(**GROUPS | {"bits": 3}),
    "AWQ 3-bit g128": quantize.AWQ(**GROUPS | {"bits": 3}),
    "GPTQ 3-bit g128": quantize.GPTQ(**GROUPS | {"bits": 3}),
    "RTN 4-bit g64": quantize.RTN(head=False),
    "NF4 g64": quantize.NF4(),
    "Budget 4.5 bits, GPTQ, g64": quantize.Budget(bits_per_weight=4.5, head=False),
    "RTN 8-bit g128": quantize.RTN(**GROUPS | {"bits": 8}),
    "RTN 8-bit g128, 8-bit head": quantize.RTN(bits=8, group_size=128),
    "Int8 (a scale a row, 8-bit head)": quantize.Int8(),
    "Int8Dynamic (a scale a row, 8-bit head)": quantize.Int8Dynamic(),
    "SmoothQuant (the same)": quantize.SmoothQuant(),
    "SmoothQuant, as the authors leave out": quantize.SmoothQuant(inner=False),
    "Rotate, then Int8Dynamic": wb.Recipe([quantize.Rotate(), quantize.Int8Dynamic()]),
    "Rotate, then SmoothQuant": wb.Recipe([quantize.Rotate(), quantize.SmoothQuant()]),
    "Rotate, then RTN 4-bit g128": wb.Recipe([quantize.Rotate(), quantize.RTN(**GROUPS)]),
    "Rotate, then GPTQ 4-bit g128": wb.Recipe([quantize.Rotate(), quantize.GPTQ(**GROUPS)]),
    "GPTQ 8-bit g128": quantize.GPTQ(**GROUPS | {"bits": 8}),
    "FP8 (a scale a row)": quantize.FP8(),
    "KVCache 8-bit": quantize.KVCache(bits=8),
    "KVCache 4-bit": quantize.KVCache(bits=4),
}


def layer_bits(variant: wb.Variant) -> float | None:
    """Bits a weight of the packed layers in the blocks, from the bytes they hold; biases left out."""
    head = variant.model.get_output_embeddings()
    layers = [m for m in variant.model.modules() if isinstance(m, PackedLinear) and m is not head]
    size = sum(b.numel() * b.element_size() for m in layers for name, b in m.named_buffers() if name != "bias")
    count = sum(m.in_features * m.out_features for m in layers)
    return round(8 * size / count, 3) if count else None


def shared(steps: wb.Recipe, watched: float) -> float:
    """Seconds of the calibration pass that a step on the dense model has found done; a sequential one runs its own."""
    first = next(iter(steps))
    return watched if first.needs_data and not getattr(first, "sequential", False) else 0.0


def main() -> None:
    """Every method on one calibration, scored together with the dense model."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=16, test=16)
    forward = calibration_forward(base, text)
    started = time.perf_counter()
    calibration.statistics(base, text, hessians=True)
    watched = time.perf_counter() - started
    recipes = {name: each if isinstance(each, wb.Recipe) else wb.Recipe([each]) for name, each in STEPS.items()}
    children, took = [], []
    for name, steps in recipes.items():
        started = time.perf_counter()
        children.append(steps.apply(base, text))
        took.append(time.perf_counter() - started)
        print(name, round(took[-1], 1), file=sys.stderr, flush=True)
    scored = likelihoods([base, *children], [task_spans(base, text)] * (1 + len(children)))[1:]
    rows: dict[str, Any] = {}
    for name, child, seconds, found in zip(STEPS, children, took, scored, strict=True):
        kl = ratio_of_sums(found.kl, found.tokens, "nats/token")
        rows[name] = {
            "kl": round(kl.value, 5),
            "kl_interval": [round(kl.low, 5), round(kl.high, 5)],
            "bits_per_weight_of_packed_layers": layer_bits(child),
            "bits_per_weight_of_the_model": round(bits_per_weight(child), 3),
            "seconds": round(seconds, 1),
            "seconds_with_calibration_over_forward": round((seconds + shared(recipes[name], watched)) / forward, 2),
        }
    plain = rows["RTN 4-bit g128"]["kl"]
    ratios = {name: round(row["kl"] / plain, 3) for name, row in rows.items() if "4-bit g128" in name}
    write_result(
        "quantization",
        {
            "calibration_forward_seconds": round(forward, 2),
            "calibration_with_hessians_seconds": round(watched, 2),
            "kl_over_rtn_4bit_g128": ratios,
            "variants": rows,
        },
    )


if __name__ == "__main__":
    main()
