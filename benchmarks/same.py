"""How often a variant compared with itself comes out "no difference", on the default model.

python benchmarks/same.py
"""

import logging
import warnings

from common import write_result

import workbench as wb

REPEATS = 12


def main() -> None:
    """Many short comparisons of the baseline with itself."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu")
    text = wb.read_text("data/prose", window=64, calibration=0, test=6)
    said = []
    for _ in range(REPEATS):
        result = wb.compare([base, base], text, rounds=10, new_tokens=8, store=False)
        said.append(result.verdicts()[f"{base.name} (2)"])
    write_result(
        "same",
        {
            "comparisons": REPEATS,
            "no_difference": sum(verdict.no_difference for verdict in said),
            "otherwise": [str(verdict) for verdict in said if not verdict.no_difference],
        },
    )


if __name__ == "__main__":
    main()
