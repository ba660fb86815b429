"""Magnitude, Wanda and SparseGPT as the authors of Wanda wrote them, run on this version of transformers.

The code is not ours and not here: $WANDA_REPO names a checkout of https://github.com/locuslab/wanda. Its functions run
unchanged; what they need and transformers 5 or a machine without a GPU lacks is put in place around them for one call.

    WANDA_REPO=... python benchmarks/reference_pruning.py FOLDER [--blocks 2 --windows 2 --test 2]

FOLDER receives reference.json and, for every method and pattern, the masks as safetensors.
"""

import argparse
import copy
import importlib
import io
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from common import public_data
from safetensors.torch import save_file
from torch import Tensor, nn

import workbench as wb
from workbench.core.device import environment

METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = {"unstructured": (0, 0), "2:4": (2, 4)}
MOST_WINDOWS = 128  # their Wanda keeps the inputs of a block in a buffer of so many windows


def prune(
    model: Any,
    tokenizer: Any,
    windows: list[list[int]],
    method: str,
    sparsity: float,
    n: int = 0,
    m: int = 0,
) -> dict[str, float]:
    """Prune a Llama-type model in place with the authors' function of that name.

    Args:
        model: a ``LlamaForCausalLM`` or a model built alike (``model.model.layers``, ``model.model.rotary_emb``).
        windows: token ids, all windows equally long; each is one calibration sample. Magnitude does not read them.
        method: magnitude, wanda or sparsegpt.
        sparsity: share of the weights set to zero; ignored when n is given.
        n: weights set to zero in each group of m neighbours of a row; 0 for no pattern.
        m: weights in a group.

    Returns:
        Seconds: ``total``; of these, ``forwards`` in the blocks, ``statistics`` in accumulating the layers' inputs, and
        ``selection``, the rest: choosing the masks and updating the weights.
    """
    if not windows or len({len(window) for window in windows}) != 1 or len(windows) > MOST_WINDOWS:
        raise SystemExit(f"The reference needs 1 to {MOST_WINDOWS} calibration windows of one length.")
    theirs = authors()
    samples = [(torch.tensor([window]), None) for window in windows]
    options = SimpleNamespace(nsamples=len(windows), seed=0, sparsity_ratio=sparsity, use_variant=False)
    spent = {"forwards": 0.0, "statistics": 0.0}
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(mock.patch.object(theirs, "get_loaders", return_value=(samples, None)))
        for collector in (theirs.WrappedGPT, theirs.SparseGPT):
            timed = _timed(collector.add_batch, spent)
            stack.enter_context(mock.patch.object(collector, "add_batch", timed))
        stack.enter_context(_without_gpu())
        stack.enter_context(_as_they_expect(model, len(windows[0])))
        stack.enter_context(_timed_blocks(model, spent))
        started = time.perf_counter()
        getattr(theirs, f"prune_{method}")(options, model, tokenizer, torch.device("cpu"), prune_n=n, prune_m=m)
        total = time.perf_counter() - started
    forwards = spent["forwards"] - spent["statistics"]  # the statistics are gathered by hooks inside the forwards
    return {
        "total": total,
        "forwards": forwards,
        "statistics": spent["statistics"],
        "selection": total - spent["forwards"],
    }


def masks(model: Any) -> dict[str, Tensor]:
    """Which weights of every linear layer in the blocks are zero: bool ``(out, in)`` by the layer's path."""
    return {
        f"model.layers.{path}": layer.weight.detach() == 0
        for path, layer in model.model.layers.named_modules()
        if isinstance(layer, nn.Linear)
    }


@torch.inference_mode()
def perplexity(model: Any, windows: list[list[int]]) -> float:
    """Perplexity as they evaluate it: each window on its own, its mean loss weighted by its length."""
    total = 0.0
    for window in windows:
        ids = torch.tensor([window])
        logits = model(ids).logits[0, :-1].float()
        total += nn.functional.cross_entropy(logits, ids[0, 1:]).item() * len(window)
    return math.exp(total / sum(len(window) for window in windows))


def authors() -> ModuleType:
    """Their module of pruning functions, imported from the checkout."""
    folder = os.environ.get("WANDA_REPO")
    if not folder or not (Path(folder) / "lib" / "prune.py").exists():
        raise SystemExit("Set WANDA_REPO to a checkout of https://github.com/locuslab/wanda.")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("lib.prune")


@contextmanager
def _without_gpu() -> Iterator[None]:
    """Their sort on the GPU stays where the tensor is, and their wait for the GPU returns at once."""
    with (
        mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor),
        mock.patch.object(torch.cuda, "synchronize"),
    ):
        yield


@contextmanager
def _as_they_expect(model: Any, length: int) -> Iterator[None]:
    """The model's attributes they read, and for its blocks the rotary embeddings they do not know of."""

    def add_position_embeddings(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        if "position_embeddings" not in options:
            rotary = model.model.rotary_emb(inputs[0], position_ids=options["position_ids"])
            options = options | {"position_embeddings": rotary}
        return inputs, options

    model.seqlen, model.hf_device_map = length, {}
    handles = [
        block.register_forward_pre_hook(add_position_embeddings, with_kwargs=True) for block in model.model.layers
    ]
    try:
        yield
    finally:
        del model.seqlen, model.hf_device_map
        for handle in handles:
            handle.remove()


@contextmanager
def _timed_blocks(model: Any, spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds spent in the blocks' forwards."""

    def start(*_: Any) -> None:
        spent["forwards"] -= time.perf_counter()

    def stop(*_: Any) -> None:
        spent["forwards"] += time.perf_counter()

    handles = [block.register_forward_pre_hook(start) for block in model.model.layers]
    handles += [block.register_forward_hook(stop) for block in model.model.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _timed(add_batch: Callable[..., None], spent: dict[str, float]) -> Callable[..., None]:
    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        add_batch(*arguments)
        spent["statistics"] += time.perf_counter() - started

    return timed


def main() -> None:
    """Every method with both patterns, each on a fresh copy of the default model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, help="only so many blocks")
    parser.add_argument("--windows", type=int, default=16, help="calibration windows")
    parser.add_argument("--test", type=int, default=32, help="windows scored")
    given = parser.parse_args()

    authors()  # fails first if the checkout is not there
    base = wb.load(device="cpu", dtype="float32")
    dense = copy.deepcopy(base.model)
    if given.blocks:
        dense.model.layers = dense.model.layers[: given.blocks]
        dense.config.num_hidden_layers = given.blocks
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=given.windows, test=given.test)
    calibration, test = (text.windows(base.tokenizer, split) for split in ("calibration", "test"))

    given.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [{"method": "dense", "pattern": "", "perplexity": perplexity(dense, test)}]
    show(rows[-1])
    for method, (pattern, (n, m)) in itertools.product(METHODS, PATTERNS.items()):
        model = copy.deepcopy(dense)
        taken = prune(model, base.tokenizer, calibration, method, 0.5, n, m)
        zero = masks(model)
        zeros = sum(int(mask.sum()) for mask in zero.values()) / sum(mask.numel() for mask in zero.values())
        score = perplexity(model, test)
        rows.append({"method": method, "pattern": pattern, "perplexity": score, "zeros": zeros, "seconds": taken})
        show(rows[-1])
        save_file(zero, given.folder / f"reference_masks_{method}_{pattern.replace(':', '-')}.safetensors")
        record = {"environment": environment(torch.device("cpu")), "calibration": len(calibration), "test": len(test)}
        (given.folder / "reference.json").write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


def show(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    seconds = "  ".join(f"{name} {value:.1f} s" for name, value in row.get("seconds", {}).items())
    print(
        f"{row['method']:10} {row['pattern']:12} {row['perplexity']:10.3f}  {row.get('zeros', 0):.4%}  {seconds}",
        flush=True,
    )


if __name__ == "__main__":
    main()
