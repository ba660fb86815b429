"""Decoding speed of every engine for one request, beside llama.cpp itself and transformers' `generate`.

python benchmarks/engines.py [--rounds 8] [--tokens 48] [--threads 2] [--check] [--only 'float32' '8 bits']

Each row is one interleaved run over all ways to decode the same weights, and the float32 model as it is; the bound is
the bytes of the weights at the bandwidth that was measured after it. With --check it also says where the greedy tokens
of a variant in llama.cpp leave those of the plain engine, and how near a tie that is.
"""

import argparse
import json
import logging
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import read_bandwidth, rounded, write_result
from transformers.generation.streamers import BaseStreamer

import workbench as wb
from workbench.core.estimate import paired_ratio
from workbench.models.interchange import gguf
from workbench.runtime.decoding import Decoding
from workbench.steps import quantize, runtime

QUESTION = "Explain how the tides work, in detail."
PROMPTS = [
    f"{start} {what}?"
    for start in ("What is", "How would you explain", "Why do people need", "Write two sentences: what is")
    for what in ("a lighthouse", "the moon", "a good friend", "bread", "a library")
]
ROWS = {  # the step before, and the form in llama.cpp
    "float32": (None, "F32"),
    "float16": (None, "F16"),
    "8 bits": (quantize.Int8(), "as it is"),
    "4 bits": (quantize.RTN(bits=4, group_size=32, symmetric=True), "as it is"),
}
FIRST, SECOND = "eager float32", "llama.cpp"
SERVER = """
import json, sys, xllamacpp
file, ids, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = file, 1024, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.warmup, params.verbosity, params.hostnames = True, -1, ["127.0.0.1"]
server = xllamacpp.Server(params)
asked = {"prompt": ids, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
print("READY", flush=True)
for line in sys.stdin:
    answer = server.handle_completions(asked | {"max_tokens": int(line), "n_predict": int(line)})
    found = answer if isinstance(answer, dict) else json.loads(answer)
    print("SPEED", found["timings"]["predicted_per_second"], flush=True)
"""
Way = Callable[[int], float]  # tokens -> tokens a second after the first


class Endless:
    """Wants every token, and notes when it came."""

    watches = ended = False

    def __init__(self) -> None:
        self.times: list[float] = []

    def restrict(self, logits: torch.Tensor) -> None:
        """Everything may come."""

    def take(self, token: int, chance: float | None = None) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


class Clock(BaseStreamer):
    """What `generate` hands its tokens to."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def speed(times: list[float]) -> float:
    """Tokens a second after the first."""
    return (len(times) - 1) / (times[-1] - times[0])


def by_engine(variant: wb.Variant) -> Way:
    """Straight from the variant's engine."""
    ids = variant.encode(QUESTION)

    def run(tokens: int) -> float:
        row = Endless()
        for _ in variant.engine.decode(variant.model, [ids], Decoding(max_new_tokens=tokens), [row]):
            pass
        return speed(row.times)

    return run


def by_stream(variant: wb.Variant) -> Way:
    """As a user sees it, piece by piece."""

    def run(tokens: int) -> float:
        return speed([time.perf_counter() for _ in variant.stream(QUESTION, max_new_tokens=tokens)])

    return run


def by_generate(variant: wb.Variant) -> Way:
    """By transformers' own loop."""
    ids = torch.tensor([variant.encode(QUESTION)])

    def run(tokens: int) -> float:
        clock = Clock()
        variant.model.generate(
            ids, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, streamer=clock, pad_token_id=0
        )
        return speed(clock.times[1:])  # the first is the prompt

    return run


class Server:
    """llama.cpp's own server on a file, timed by itself; in a process that stands still while others are timed.

    Its thread that waits for requests keeps a core busy.
    """

    def __init__(self, file: Path, ids: list[int], threads: int) -> None:
        command = [sys.executable, "-c", SERVER, str(file), json.dumps(ids), str(threads)]
        self._peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._hear("READY")

    def __call__(self, tokens: int) -> float:
        """Tokens a second after the first."""
        self._peer.send_signal(signal.SIGCONT)
        assert self._peer.stdin is not None
        self._peer.stdin.write(f"{tokens}\n")
        self._peer.stdin.flush()
        return float(self._hear("SPEED"))

    def _hear(self, word: str) -> str:
        assert self._peer.stdout is not None
        line = next(each for each in self._peer.stdout if each.startswith(word))
        self._peer.send_signal(signal.SIGSTOP)
        return line.removeprefix(word)

    def close(self) -> None:
        """End the process."""
        self._peer.kill()
        self._peer.wait()


def ways(base: wb.Variant, variant: wb.Variant, form: str, folder: Path, threads: int) -> Iterator[tuple[str, Way]]:
    """Every way to decode a variant, and the float32 model as it is; further engines are further lines."""
    yield FIRST, by_engine(base)
    yield "eager", by_engine(variant)
    yield "transformers generate", by_generate(variant)
    fast = variant.apply(runtime.LlamaCpp(form=form, threads=threads))
    yield "LlamaCpp", by_engine(fast)
    auto = variant.apply(runtime.Auto())
    print(auto.notes[-1], flush=True)
    yield "Auto", by_engine(auto)
    yield "LlamaCpp, streamed", by_stream(fast)
    file = folder / f"{form}-{variant.name}.gguf".replace(" ", "-")
    gguf.write(file, variant.model, variant.tokenizer, "a", "" if form == "as it is" else form)
    yield SECOND, Server(file, variant.encode(QUESTION), threads)


def measured(found: dict[str, Way], rounds: int, tokens: int) -> dict[str, Any]:
    """Tokens a second of every way, and their ratios to eager and to llama.cpp itself, round by round."""
    for run in found.values():
        run(8)
    speeds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        for name in list(found) if number % 2 == 0 else list(found)[::-1]:
            speeds[name].append(found[name](tokens))
    return {
        name: {
            "tokens_per_second": round(float(np.median(each)), 1),
            "to_float32": rounded(paired_ratio(each, speeds[FIRST]), 3),
            "to_eager": rounded(paired_ratio(each, speeds["eager"]), 3),
            "to_llama_cpp": rounded(paired_ratio(each, speeds[SECOND]), 3),
        }
        for name, each in speeds.items()
    }


def checked(variant: wb.Variant, form: str, tokens: int, prompts: int) -> dict[str, Any]:
    """Where greedy tokens differ first, and how far apart the two best logits are there, by the plain engine."""
    fast = variant.apply(runtime.LlamaCpp(form=form))
    first = []
    for text in PROMPTS[:prompts]:
        one, other = (each.generate(text, max_new_tokens=tokens).token_ids for each in (variant, fast))
        if one != other:
            at = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
            with torch.no_grad():
                ids = torch.tensor([[*variant.encode(text), *one[:at]]])
                logits = variant.model(ids).logits[0, -1].float()
            gap = float(logits[one[at]] - logits[other[at]])
            first.append({"prompt": text, "token": at, "gap": round(gap, 4), "spread": round(float(logits.std()), 2)})
    return {"prompts": prompts, "same": prompts - len(first), "first_differences": first}


def main() -> None:
    """One interleaved run a row on the default model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="engines", help="of the result")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", choices=list(ROWS), nargs="*", default=list(ROWS))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many are checked")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    base = wb.load(device="cpu")
    rows, same = {}, {}
    with TemporaryDirectory() as folder:
        for name in given.only:
            step, form = ROWS[name]
            variant = base.apply(step) if step else base
            found: dict[str, Any] = dict(ways(base, variant, form, Path(folder), given.threads))
            try:
                rows[name] = measured(found, given.rounds, given.tokens)
            finally:
                found[SECOND].close()
            rows[name]["bound by reading the weights"] = round(read_bandwidth() / variant.total_bytes, 1)
            if given.check:
                same[name] = checked(variant, form, given.tokens, given.prompts)
    result = {"threads": given.threads, "read_bandwidth_GB_per_s": round(read_bandwidth() / 1e9, 1), "rows": rows}
    write_result(given.name, result | ({"same_tokens": same} if given.check else {}))


if __name__ == "__main__":
    main()
