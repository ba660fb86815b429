"""Decoding with compiled steps against the same weights run operation by operation, and against what memory allows.

python benchmarks/compiling.py [--rounds 5] [--tokens 32] [--search]

The seconds to compile are those of a process of its own, with an empty cache and once more with what the first left.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from common import rounded, seconds, write_result

import workbench as wb
from workbench.core import files
from workbench.core.estimate import median, paired_ratio
from workbench.runtime.decoding import Decoding
from workbench.steps import quantize
from workbench.steps.runtime import Compile
from workbench.training.sequences import Continuation

QUESTION = "Tell me a long story about a lighthouse."
PARENTS = {"float32": None, "Int8": quantize.Int8(), "RTN 4 bits": quantize.RTN()}


def main() -> None:
    """One interleaved run on the default model."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--name", default="compiling", help="of the result")
    options.add_argument("--search", action="store_true", help="also try Inductor's other settings")
    options.add_argument("--only-compile", help=argparse.SUPPRESS)
    given = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu")
    if given.only_compile:
        print(json.dumps(seconds(lambda: base.apply(Compile(how=given.only_compile)))))
        return
    write_result(given.name, {"seconds_to_compile": times_to_compile(), "variants": timed(base, given)})


def times_to_compile() -> dict[str, dict[str, float]]:
    """Cold and warm, of the float32 model, each in a process of its own."""
    found = {}
    for how in ("whole", "blocks"):
        with tempfile.TemporaryDirectory() as empty:
            models = files.cache_folder()
            for each in models.iterdir() if models.exists() else ():
                if each.name != "compiled":
                    os.symlink(each, os.path.join(empty, each.name))
            command = [sys.executable, __file__, "--only-compile", how]
            run = partial(subprocess.run, command, env=os.environ | {"WORKBENCH_CACHE": empty}, capture_output=True)
            found[how] = {name: round(float(run(check=True).stdout.splitlines()[-1]), 1) for name in ("cold", "warm")}
    return found


def timed(base: wb.Variant, given: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of every variant, compiled and not, and what reading its weights allows."""
    found: dict[str, Any] = {}
    for name, step in PARENTS.items():
        parent = base if step is None else base.apply(step)
        variants = {"eager": parent} | {
            how: parent.apply(Compile(how=how, search=given.search)) for how in ("whole", "blocks")
        }
        rows = {way: Continuation(()) for way in variants}
        times: dict[str, list[float]] = {way: [] for way in variants}
        bandwidth = 0.0
        for number in range(given.rounds + 1):
            for way in list(variants) if number % 2 else list(variants)[::-1]:
                rows[way] = Continuation(())
                times[way].append(seconds_a_token(variants[way], rows[way], given.tokens))
            bandwidth = max(bandwidth, gemv_bandwidth())
        bound = bandwidth / parent.total_bytes
        found[name] = {"read_bandwidth_GB_per_s": round(bandwidth / 1e9, 1), "bound_tokens_per_s": round(bound, 1)}
        for way, (_, *taken) in times.items():  # the first round is unmeasured
            pace = 1 / median(taken, "s").value
            found[name][way] = {
                "tokens_per_s": round(pace, 1),
                "share_of_bound": round(pace / bound, 2),
                "times_eager": rounded(paired_ratio(times["eager"][1:], taken), 3),
                "same_tokens": rows[way].ids == rows["eager"].ids,
                "notes": variants[way].notes[-1:],
            }
        for way in ("whole", "blocks"):
            variants[way].close()
    return found


def seconds_a_token(variant: wb.Variant, row: Continuation, tokens: int) -> float:
    """The median between the tokens of one answer, the first left out."""
    stamps = []
    for _ in variant.engine.decode(variant.model, [variant.encode(QUESTION)], Decoding(max_new_tokens=tokens), [row]):
        stamps.append(time.perf_counter())
    return median([after - before for before, after in pairwise(stamps)], "s").value


def gemv_bandwidth(size: int = 12_288, rounds: int = 3) -> float:
    """Bytes/s of the best of several products of a float32 matrix and one column."""
    matrix, column = torch.randn(size, size), torch.randn(size, 1)
    return matrix.nbytes / min(seconds(lambda: matrix @ column) for _ in range(rounds))


if __name__ == "__main__":
    main()
