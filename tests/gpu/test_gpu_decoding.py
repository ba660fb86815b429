"""What a token asks of a GPU: kernels started, waits of the host, copies; and which kernels are found."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.steps import output, prompt, quantize

pytestmark = pytest.mark.usefixtures("gpu")
TOKENS = 20


def per_token(gpu: Any, variant: wb.Variant, **decoding: Any) -> tuple[float, Any]:
    """Kernels a token, and what else was seen of a token in the middle of an answer."""
    variant.generate("What is a lobster?", max_new_tokens=2, **decoding)
    with gpu.watched() as few:
        variant.generate("What is a lobster?", max_new_tokens=2, **decoding)
    with gpu.watched() as many:
        variant.generate("What is a lobster?", max_new_tokens=2 + TOKENS, **decoding)
    many.kernels.subtract(few.kernels)
    many.waits.subtract(few.waits)
    many.copies.subtract(few.copies)
    return sum(many.kernels.values()) / TOKENS, many


@pytest.mark.parametrize("step", [None, quantize.NF4(), quantize.LLMInt8(), quantize.RTN(), quantize.RTN(bits=3), quantize.RTN(bits=8), quantize.Int8(), quantize.Int8Dynamic(), quantize.FP8(), quantize.KVCache(bits=8), quantize.KVCache(bits=4), output.Stop(floor=0.0001), prompt.Constrain(form="pattern", rule="[a-z]{30}")])
@pytest.mark.parametrize("capability", [(8,0),(9,0)])
def test_count(gpu: Any, step, capability, folders, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "capability", capability)
    base = wb.load(folders["llama"], device="cuda")
    found, seen = per_token(gpu, base.apply(step) if step else base)
    print("COUNT", step, capability, found, {k: v/TOKENS for k, v in seen.waits.items() if v}, {k: v/TOKENS for k, v in seen.copies.items() if v})
    print("      ", {k: round(v/TOKENS, 1) for k, v in seen.kernels.most_common(14)})
