"""Tokens per second over how many requests come at once, what joining rows gain, and vLLM's CPU build beside ours.

python benchmarks/batching.py [--rounds 4] [--vllm /path/to/vllm/bin/python]

vLLM runs in its own environment and process, on the same weights exported in float32, with the same prompts, numbers of
tokens and threads, a round of each in turn.
"""

import argparse
import json
import logging
import os
import subprocess
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import interleaved, rounded, write_result

import workbench as wb
from workbench.core.estimate import paired_ratio
from workbench.measurement.latency import requests
from workbench.runtime import running
from workbench.runtime.asks import Ask
from workbench.runtime.batching import Batched
from workbench.runtime.decoding import Decoding
from workbench.runtime.engine import Eager
from workbench.runtime.running import Running
from workbench.steps import quantize

SIZES, TOKENS = (1, 2, 4, 8, 16, 32), 32
THREADS = 2
# vLLM needs none of these for text, and beside a CPU build of torch those of the package index do not load.
SITE = """
import sys
for name in ("torchvision", "torchaudio", "torchcodec"):
    sys.modules[name] = None
"""
VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", max_model_len=1024, enable_prefix_caching=False)
print("READY", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    greedy = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    started = time.perf_counter()
    out = llm.generate(prompts, greedy, use_tqdm=False)
    said = [list(each.outputs[0].token_ids) for each in out]
    print("RESULT", json.dumps([time.perf_counter() - started, said]), flush=True)
"""


class Wanted:
    """Follows an answer that has exactly so many tokens, and notes when they come."""

    watches = False

    def __init__(self, tokens: int) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []
        self._wanted = tokens

    @property
    def ended(self) -> bool:
        """Whether it has them."""
        return len(self.tokens) >= self._wanted

    def restrict(self, logits: torch.Tensor) -> None:
        """Any token may come."""

    def take(self, token: int, chance: float | None = None) -> None:
        """Note it."""
        self.tokens.append(token)
        self.times.append(time.perf_counter())


class Grouped(Batched):
    """Rows that wait for the longest of their group."""

    def running(self, *_: Any, **__: Any) -> None:
        """Never."""


def decode(engine: Eager, variant: wb.Variant, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """Greedy answers of such lengths."""
    rows = [Wanted(length) for length in lengths]
    for _ in engine.decode(variant.model, prompts, Decoding(max_new_tokens=max(lengths)), rows):
        pass
    return [row.tokens for row in rows]


def curves(variants: list[wb.Variant], text: wb.Text, rounds: int) -> dict[str, Any]:
    """Throughput, latency and knee of each variant."""
    found = {}
    for variant in variants:
        curve = wb.batching(variant, text, SIZES, rounds=rounds, new_tokens=TOKENS)
        found[variant.name] = {
            "knee": curve.knee,
            "tokens_per_s": {size: rounded(each, 1) for size, each in zip(SIZES, curve.throughput, strict=True)},
            "times_one": {size: rounded(each, 2) for size, each in zip(SIZES, curve.gain, strict=True)},
            "times_one_without_reading_prompts": {
                size: round(size * curve.latency[0].value / gap.value, 2)
                for size, gap in zip(SIZES, curve.latency, strict=True)
            },
            "ms_between_tokens": {
                size: [round(1000 * each, 1) for each in rounded(gap, 6)]
                for size, gap in zip(SIZES, curve.latency, strict=True)
            },
        }
    return found


def joining(base: wb.Variant, prompts: list[list[int]], rounds: int) -> dict[str, Any]:
    """24 prompts in 8 rows, answers of 4 to 64 tokens: rows that join and leave against groups."""
    lengths = [(4, 8, 16, 64)[index % 4] for index in range(24)]
    engines = {"joining": Batched(rows=8), "groups": Grouped(rows=8)}
    times = interleaved(
        {name: lambda e=e: decode(e, base, prompts[:24], lengths) for name, e in engines.items()}, rounds
    )
    return {"groups_over_joining": rounded(paired_ratio(times["groups"], times["joining"]))}


def delay(base: wb.Variant, prompts: list[list[int]]) -> dict[str, Any]:
    """The longest gap between two tokens of 7 rows while a prompt of 1,000 tokens is read beside them, in ms."""
    found, chunk = {}, running.CHUNK
    long = [token for each in prompts for token in each][:1000]
    for name, tokens in (("in pieces", chunk), ("at once", 10**6)):
        running.CHUNK = tokens
        batch, settings = Running(base.model, 8), Decoding(max_new_tokens=40)
        rows = [Wanted(30) for _ in range(7)]
        batch.join(Ask(ids, settings, row) for ids, row in zip(prompts, rows, strict=False))
        for _ in range(10):
            batch.step()
        late = Wanted(2)
        started = time.perf_counter()
        batch.join([Ask(long, settings, late)])
        while batch.busy:
            batch.step()
        gaps = sorted(1000 * (after - before) for before, after in pairwise(rows[0].times[1:]))
        found[name] = {
            "longest_gap": round(gaps[-1], 1),
            "median_gap": round(gaps[len(gaps) // 2], 1),
            "first_token_of_the_long_prompt": round(1000 * (late.times[0] - started), 1),
        }
    running.CHUNK = chunk
    return found


def against_vllm(python: str, base: wb.Variant, prompts: list[list[int]], rounds: int) -> dict[str, Any]:
    """Seconds for 1 and for 8 requests of as many tokens, ours and theirs in turn."""
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}", "HF_HUB_OFFLINE": "1"}
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        path = base.save(Path(folder) / "export")
        (Path(folder) / "sitecustomize.py").write_text(SITE)
        peer = subprocess.Popen(
            [python, "-c", VLLM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=keep | own | quiet | {"PYTHONPATH": folder}, cwd=folder,
        )  # fmt: skip
        try:
            hear(peer, "READY")
            found = {}
            for size in (1, 8):
                lengths, said = [TOKENS * 2] * size, {}

                def ours(size: int = size, lengths: list[int] = lengths, said: dict = said) -> None:
                    said["ours"] = decode(Batched(rows=size), base, prompts[:size], lengths)

                def theirs(size: int = size, lengths: list[int] = lengths, said: dict = said) -> None:
                    assert peer.stdin is not None
                    peer.stdin.write(json.dumps({"prompts": prompts[:size], "tokens": lengths[0]}) + "\n")
                    peer.stdin.flush()
                    said["theirs"] = json.loads(hear(peer, "RESULT"))[1]

                times = interleaved({"ours": ours, "theirs": theirs}, rounds)
                found[size] = {
                    "ours_over_theirs": rounded(paired_ratio(times["theirs"], times["ours"])),
                    "tokens_per_s": {
                        name: round(size * TOKENS * 2 / sorted(each)[len(each) // 2], 1) for name, each in times.items()
                    },
                    "same_answers": sum(a == b for a, b in zip(said["ours"], said["theirs"], strict=True)),
                }
            return found
        finally:
            peer.terminate()
            peer.wait()


def hear(peer: "subprocess.Popen[str]", word: str) -> str:
    """The rest of the peer's next line that begins with a word."""
    assert peer.stdout is not None
    for line in peer.stdout:
        if line.startswith(word):
            return line[len(word) :]
    raise SystemExit(f"vLLM ended early, with {peer.wait()}.")


def main() -> None:
    """Everything on the default model."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--vllm", help="the Python of an environment with vllm-cpu")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    base = wb.load(device="cpu")
    text = wb.read_text("data/prose", window=256, calibration=4, test=32)
    prompts = [base.encode(each) for each in requests(base, text, 32)]
    found: dict[str, Any] = {}
    if chosen.vllm:
        found["vllm"] = against_vllm(chosen.vllm, base, prompts, chosen.rounds)
    variants = [base, base.apply(quantize.Int8()), base.apply(quantize.RTN())]
    found["curves"] = curves(variants, text, max(2, chosen.rounds // 2))
    found["joining"] = joining(base, prompts, chosen.rounds)
    found["reading_beside"] = delay(base, prompts)
    write_result("batching", found)


if __name__ == "__main__":
    main()
