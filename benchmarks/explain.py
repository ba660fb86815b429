"""How well a variant's speed is predicted from its parts: predicted beside measured, for every kind of variant.

    python benchmarks/explain.py [--rounds 4] [--only NF4]

Variants whose engine is not installed are left out. The goal is a prediction within 20 % of what is measured.
"""

import argparse
import logging
import warnings
from typing import Any

from common import write_result

import workbench as wb
from workbench.core.errors import WorkbenchError
from workbench.recipe import REGISTRY
from workbench.steps import prune, quantize

BATCHES = (1, 4, 16, 64)
GOAL = 0.2
STEPS: dict[str, Any] = {
    "float32": None,
    "NF4": quantize.NF4(),
    "Int8": quantize.Int8(),
    "GPTQ": quantize.GPTQ(group_size=128),
    "pruned (Wanda)": prune.Wanda(sparsity=0.5),
    "pruned (DropBlocks)": prune.DropBlocks(share=0.25),
    "compiled": "runtime.Compile",
    "llama.cpp": "runtime.LlamaCpp",
}


def variant_of(base: wb.Variant, text: wb.Text, wanted: Any) -> wb.Variant | None:
    """The variant, or nothing where its engine is not here."""
    if isinstance(wanted, str):
        kind = REGISTRY.get(wanted)
        if kind is None:
            return None
        wanted = kind()
    try:
        return base if wanted is None else base.apply(wanted, text)
    except WorkbenchError as error:
        print(f"left out: {error}")
        return None


def row(found: wb.Explanation) -> dict[str, Any]:
    """What was predicted and measured, in ms, and the share that the prediction is off by."""
    table = found.table()
    passes = {
        name: {
            "predicted_ms": [round(1e3 * float(each[f"predicted{end}"]), 2) for end in ("", "_low", "_high")],
            "measured_ms": [round(1e3 * float(each[f"measured{end}"]), 2) for end in ("", "_low", "_high")],
            "at_least_ms": round(1e3 * float(each["least"]), 2),
            "off_by": round(float(each["error"]), 3),
        }
        for name, each in table.iterrows()
    }
    one = abs(passes["decode 1"]["off_by"])
    return {
        "sentence": found.sentence,
        "one_request_within_goal": one <= GOAL,
        "all_within_goal": bool((table["error"].abs() <= GOAL).all()),
        "passes": passes,
        "parts_ms": {name: round(1e3 * value, 2) for name, value in vars(found.parts).items()},
    }


def main() -> None:
    """Explain one variant after another; each is timed interleaved with its own parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default="", help="part of the name of a variant")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu")
    text = wb.read_text("data/prose", window=256, calibration=8, test=12)
    rows, device = {}, None
    for name, wanted in STEPS.items():
        variant = variant_of(base, text, wanted) if given.only in name else None
        if variant is None:
            continue
        found = wb.explain(variant, *BATCHES, rounds=given.rounds)
        rows[name], device = row(found), found.device
        print(name, found.sentence, {key: each["off_by"] for key, each in rows[name]["passes"].items()}, flush=True)
        if variant != base:
            variant.close()
    assert device is not None, "no variant has such a name"
    worst = max(abs(each["off_by"]) for each in (one["passes"]["decode 1"] for one in rows.values()))
    write_result(
        "explain",
        {
            "goal": f"within {GOAL:.0%} of measured",
            "worst_with_one_request": worst,
            "device": {
                "reads_GB_per_s": round(device.bandwidth / 1e9, 2),
                "GFLOP_per_s": {kind: round(rate / 1e9, 1) for kind, rate in device.flops.items()},
                "us_to_start_an_operation": round(1e6 * device.call, 2),
            },
            "variants": rows,
        },
    )


if __name__ == "__main__":
    main()
