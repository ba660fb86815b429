"""Whether every target's own loader answers 20 prompts as the deployed variant does, on the default model.

python benchmarks/deploy.py [--only 'float32' '4 bits'] [--targets transformers gguf] [--vllm /path/to/python]

Each folder is moved before it is asked once more, so that nothing in it depends on where it was written. vLLM has an
environment of its own: name its Python with --vllm or $WORKBENCH_VLLM_PYTHON, or it is left out.
"""

import argparse
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import seconds, write_result

import workbench as wb
from workbench.core.errors import WorkbenchError
from workbench.serving import deploy, launch
from workbench.serving.questions import QUIET
from workbench.steps import quantize

FOUR = quantize.RTN(bits=4, group_size=32, symmetric=True)
ROWS: dict[str, tuple[str, Any]] = {  # the type that is loaded, and the step
    "float32": ("float32", None),
    "8 bits": ("float32", quantize.Int8()),
    "4 bits": ("float32", FOUR),
    "4 bits in bfloat16": ("bfloat16", FOUR),
    "bfloat16": ("bfloat16", None),
    "8 bits, activations too": ("float32", quantize.Int8Dynamic()),
}


def tried(variant: wb.Variant, target: launch.Target, folder: Path, python: str | None) -> dict[str, Any]:
    """What the test found when the folder was written, and again where it was moved to."""
    made: list[deploy.Deployment] = []
    try:
        took = seconds(lambda: made.append(deploy.deploy(variant, folder / "written", target, python=python)))
    except WorkbenchError as error:
        return {"refused": str(error)}
    found = made[0]
    place = (folder / "written").rename(folder / "moved")
    again = subprocess.run(
        [python or sys.executable, str(place / "smoke.py")],
        cwd="/",
        env={name: each for name, each in (os.environ | QUIET).items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    return {
        "prompts": len(found.gaps),
        "same": sum(gap == 0 for gap in found.gaps),
        "largest_gap_nats": max(found.gaps),
        "holds": found.holds,
        "moved": [line for line in again.stdout.splitlines() if "prompts are answered" in line],
        "seconds": round(took, 1),
        "bytes": found.bytes,
        "versions": found.versions,
    }


def main() -> None:
    """Every target for every row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=list(ROWS), nargs="*", default=list(ROWS))
    parser.add_argument("--targets", choices=launch.TARGETS, nargs="*", default=list(launch.TARGETS))
    parser.add_argument("--vllm", default=os.environ.get(deploy.VLLM))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found: dict[str, Any] = {}
    for name in given.only:
        dtype, step = ROWS[name]
        base = wb.load(device="cpu", dtype=dtype)
        variant = base.apply(step) if step else base
        found[name] = {}
        for target in given.targets:
            if target == "vllm" and not given.vllm:
                continue
            with TemporaryDirectory() as folder:
                found[name][target] = tried(variant, target, Path(folder), given.vllm if target == "vllm" else None)
            write_result("deploy", found)  # what there is so far: all of it takes long


if __name__ == "__main__":
    main()
