"""SmoothQuant and learned rounding as their authors wrote them, beside ours: the same calibration, the same scoring.

The code is not ours and not here: $SMOOTHQUANT_REPO names a checkout of https://github.com/mit-han-lab/smoothquant, and
auto-round (https://github.com/intel/auto-round) is installed where Python finds it. Both run unchanged.

    SMOOTHQUANT_REPO=... python benchmarks/reference_quantization.py [--steps 50]

Calibrates on the first 16 windows of 512 tokens of WikiText-2's validation text and scores the last 16.
"""

import argparse
import copy
import importlib
import os
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from common import public_data, write_result
from torch import Tensor, nn
from torch.utils.data import DataLoader

import workbench as wb
from workbench.core.estimate import ratio_of_sums
from workbench.layers import calibration
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.steps import quantize


def peaks(model: nn.Module, windows: list[list[int]]) -> dict[str, Tensor]:
    """Largest absolute value of every input channel ``(in,)``, by the path of the layer, as the authors watch it."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            largest = inputs[0].detach().flatten(0, -2).abs().amax(0)
            found[name] = torch.maximum(found[name], largest) if name in found else largest

        return hook

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers]
    with torch.no_grad():
        for window in windows:
            model(torch.tensor([window]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def smoothed(base: wb.Variant, windows: list[list[int]]) -> tuple[wb.Variant, nn.Module]:
    """The authors' smoothing, then their 8-bit layers in the blocks; and the smoothed model before that."""
    sys.path.insert(0, os.environ["SMOOTHQUANT_REPO"])
    smooth = importlib.import_module("smoothquant.smooth")
    fake = importlib.import_module("smoothquant.fake_quant")
    model = copy.deepcopy(base.model)
    smooth.smooth_lm(model, peaks(model, windows), 0.5)
    between = copy.deepcopy(model)
    for name, layer in list(model.model.layers.named_modules()):
        if isinstance(layer, nn.Linear):
            model.model.layers.set_submodule(name, fake.W8A8Linear.from_float(layer))
    return replace(base, model=model, name="SmoothQuant, theirs"), between


def learned(base: wb.Variant, windows: list[list[int]], steps: int) -> wb.Variant:
    """Rounded by auto-round, in float32 and with its own settings else."""
    auto_round = importlib.import_module("auto_round")
    rows = [{"input_ids": torch.tensor(window)} for window in windows]
    rounding = auto_round.AutoRound(
        copy.deepcopy(base.model), tokenizer=base.tokenizer, iters=steps, nsamples=len(windows), seqlen=len(windows[0]),
        scheme={"bits": 4, "group_size": 128, "sym": False, "data_type": "int", "act_bits": 16},
        batch_size=4, dataset=DataLoader(rows, batch_size=4), device_map="cpu", amp=False,
        enable_torch_compile=False,
    )  # fmt: skip
    model, _ = rounding.quantize()
    return replace(base, model=model.float(), name="SignRound, theirs")


def main() -> None:
    """Ours and theirs, scored together."""
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=50)
    steps = options.parse_args().steps
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=16, test=16)
    windows = calibration.calibration_windows(base, text)
    took: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        started = time.perf_counter()
        found = work()
        took[name] = round(time.perf_counter() - started, 1)
        print(name, took[name], file=sys.stderr, flush=True)
        return found

    theirs, between = timed("SmoothQuant, theirs", lambda: smoothed(base, windows))
    variants = [
        base.apply(quantize.Int8Dynamic(head=False)),
        timed("SmoothQuant, ours", lambda: base.apply(quantize.SmoothQuant(inner=False, head=False), text)),
        theirs,
        base.apply(quantize.GPTQ(bits=4, group_size=128, head=False), text),
        timed("SignRound, ours", lambda: base.apply(quantize.SignRound(group_size=128, head=False, steps=steps), text)),
        timed("SignRound, theirs", lambda: learned(base, windows, steps)),
    ]
    with torch.no_grad():
        ids = torch.tensor([windows[0]])
        plain, turned = (each(ids).logits for each in (base.model, between))
    scored = likelihoods([base, *variants], [task_spans(base, text)] * (1 + len(variants)))[1:]
    names = ("Int8Dynamic", "SmoothQuant, ours", "SmoothQuant, theirs", "GPTQ", "SignRound, ours", "SignRound, theirs")
    rows = {}
    for name, found in zip(names, scored, strict=True):
        kl = ratio_of_sums(found.kl, found.tokens, "nats/token")
        rows[name] = {"kl": [round(each, 5) for each in (kl.value, kl.low, kl.high)], "seconds": took.get(name)}
    write_result(
        "reference_quantization",
        {
            "auto-round": version("auto-round"),
            "steps of learning": steps,
            "their smoothing alone changes logits by": float((plain - turned).norm() / plain.norm()),
            "variants": rows,
        },
    )


if __name__ == "__main__":
    main()
