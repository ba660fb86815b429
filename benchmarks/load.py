"""`wb.load()` from a warm cache against reading the same file.

python benchmarks/load.py
"""

import logging
import warnings

import numpy as np
from common import interleaved, write_result

import workbench as wb
from workbench.core.estimate import paired_ratio
from workbench.models.loading import default_folder


def main() -> None:
    """Interleaved: the whole load (hash checks, tokenizer) and a plain read of the weights."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    weights = default_folder() / "model.safetensors"
    times = interleaved({"load": lambda: wb.load(device="cpu"), "read": weights.read_bytes}, rounds=12)
    ratio = paired_ratio(times["load"], times["read"])
    write_result(
        "load",
        {
            "file_bytes": weights.stat().st_size,
            "load_seconds": round(float(np.median(times["load"])), 3),
            "read_seconds": round(float(np.median(times["read"])), 3),
            "load_over_read": [round(each, 2) for each in (ratio.value, ratio.low, ratio.high)],
        },
    )


if __name__ == "__main__":
    main()
