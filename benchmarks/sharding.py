"""A model that several processes run together: its logits beside one process, what each holds, and what it costs.

python benchmarks/sharding.py [--only logits default limit] [--rounds 6] [--tokens 16]

`logits` has small random models of several architectures read by 2 and 4 ranks; `default` the embedded model by 3,
beside the same model in this process with as many threads as cores and with one, and beside a single rank, which pays
the way through Ray and shares nothing. `limit` gives each process less memory than the weights take: one rank cannot
hold the model, several can.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import interleaved, rounded, seconds, write_result
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

import workbench as wb
from workbench.core.errors import WorkbenchError
from workbench.core.estimate import median, paired_ratio
from workbench.core.progress import Progress
from workbench.runtime import together
from workbench.serving.group import Group
from workbench.serving.shard import Sharded, shard

QUESTION = "Explain how the tides work, in detail."
IDS = [(7 * index * index + 3 * index + 5) % 400 for index in range(64)]  # any tokens
RANKS = (2, 4)
LIMITS = {3: 480_000_000, 2: 820_000_000}  # bytes beside Python and its libraries, by ranks: less than the weights take


def configs() -> dict[str, PreTrainedConfig]:
    """Small models whose heads 4 ranks can share."""
    block = {
        "vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        "max_position_embeddings": 512, "initializer_range": 0.2, "intermediate_size": 128,
    }  # fmt: skip
    shared = block | {"num_key_value_heads": 4}
    return {
        "llama": LlamaConfig(**shared),
        "llama, tied": LlamaConfig(**shared, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**shared, head_dim=16),
        "mistral": MistralConfig(**shared, sliding_window=16),
        "gemma": GemmaConfig(**shared, head_dim=16),
        "gpt_neox": GPTNeoXConfig(**block),
        "mixtral": MixtralConfig(**shared, num_local_experts=4, num_experts_per_tok=2),
    }


def apart(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """By how much logits differ at most, and relative to the largest of them."""
    most = float((found - wanted).abs().max())
    return {"at_most": float(f"{most:.2g}"), "of_the_largest": float(f"{most / float(wanted.abs().max()):.2g}")}


def logits(folder: Path) -> dict[str, Any]:
    """Of every architecture and number of ranks; the ranks stay and read one model after another."""
    wanted = {}
    for name, config in configs().items():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config).eval()
        model.save_pretrained(folder / name)
        with torch.no_grad():
            wanted[name] = model(torch.tensor([IDS])).logits[0]
    found: dict[str, Any] = {name: {} for name in wanted}
    for ranks in RANKS:
        group = Group("small models", ranks, "cpu", 1)
        try:
            group.start(Progress())
            for name, right in wanted.items():
                parts = group.ask("load", str(folder / name), "float32", None)
                found[name][f"{ranks} ranks"] = apart(together.read(group, IDS), right) | {
                    "bytes": [part.bytes for part in parts]
                }
        finally:
            group.close()
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads in this process, meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def default(rounds: int, tokens: int) -> dict[str, Any]:
    """The embedded model: logits, bytes, and what a token and the start cost."""
    base, started = wb.load(device="cpu", dtype="float32"), time.perf_counter()
    ids = base.encode(QUESTION) + IDS
    with shard(base, 3) as three:
        took = time.perf_counter() - started
        again = seconds(lambda: shard(base, 1).close())
        with shard(base, 1) as one, torch.no_grad():
            answers: dict[str, tuple[int, ...]] = {}

            def ask(name: str, who: wb.Variant | Sharded, count: int = 0) -> None:
                with threads(count or torch.get_num_threads()):
                    answers[name] = who.generate(QUESTION, max_new_tokens=tokens, temperature=0.0).token_ids

            cores = torch.get_num_threads()
            works = {
                "one process": lambda: ask("one process", base, cores),
                "one process, one thread": lambda: ask("one process, one thread", base, 1),
                "1 rank": lambda: ask("1 rank", one),
                "3 ranks": lambda: ask("3 ranks", three),
            }
            times = interleaved(works, rounds)
            first, single = times["one process"], times["one process, one thread"]
            return {
                "logits": apart(three.logits(ids), base.model(torch.tensor([ids])).logits[0]),
                "bytes": {"one process": base.total_bytes, "3 ranks": three.bytes},
                "resident": [part.resident for part in three.parts],
                "same_tokens": len(set(answers.values())) == 1,
                "ms_a_token": {
                    name: [round(1000 * each / tokens, 1) for each in rounded(median(found, "s"), 6)]
                    for name, found in times.items()
                },
                "over_one_process": {name: rounded(paired_ratio(each, first), 2) for name, each in times.items()},
                "over_one_thread": {name: rounded(paired_ratio(each, single), 2) for name, each in times.items()},
                "threads": cores,
                "start_s": {"with Ray, writing the weights": round(took, 1), "a rank, Ray running": round(again, 1)},
                "notes": three.notes,
            }


def limit(folder: Path) -> dict[str, Any]:
    """One rank and several under the same limit; the second model is one that 2 ranks can share."""
    base = wb.load(device="cpu", dtype="float32")
    known = base.save(folder / "default")
    config = LlamaConfig(
        vocab_size=len(base.tokenizer), hidden_size=1024, num_hidden_layers=14, num_attention_heads=16,
        num_key_value_heads=8, intermediate_size=2816, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    large = folder / "large"
    AutoModelForCausalLM.from_config(config).save_pretrained(large)
    base.tokenizer.save_pretrained(large)
    found = {}
    for ranks, path in ((3, known), (2, large)):
        weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        said: dict[str, Any] = {"weights": weights, "limit": LIMITS[ranks]}
        for count, name in ((1, "1 rank"), (ranks, f"{ranks} ranks")):
            try:
                with shard(path, count, limit=LIMITS[ranks]) as made:
                    answer = made.generate(QUESTION, max_new_tokens=8)
                    said[name] = {"bytes": made.bytes, "tokens": len(answer.token_ids)}
            except WorkbenchError as error:
                said[name] = str(error)
        found[path.name] = said
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["logits", "default", "limit"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        if "logits" in given.only:
            found["logits"] = logits(Path(name))
        if "default" in given.only:
            found["default"] = default(given.rounds, given.tokens)
        if "limit" in given.only:
            found["limit"] = limit(Path(name))
    write_result("sharding", found)


if __name__ == "__main__":
    main()
