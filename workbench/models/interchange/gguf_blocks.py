"""Weights as GGUF holds them: our codes in its blocks of 32, as they are where its layout allows it.

A block of Q4_0 stands for ``d * (q - 8)``, one of Q4_1 for ``d * q + m``, one of Q8_0 for ``d * q``, with d and m in
float16. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml's `ggml-common.h`.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workbench.core.optional import library
from workbench.models.packed import (
    GroupLinear,
    Int8Embedding,
    Int8Linear,
    LLMInt8Linear,
    Packed,
    SemiStructuredLinear,
    dense_weight,
    is_adapted,
)

BLOCK = 32
OWN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MOVED = 2.0**-10  # of a scale or a lowest value, relative: what rounding to float16 costs at most
ROUNDED = "rounded once more, to {kind}, for GGUF has no such codes"
NEAR = "with their codes as they are, scales rounded to float16"
LOWEST = "with their codes as they are, the lowest value of a group rounded to float16"
FUSED = "with their adapter fused in"


class Stored(NamedTuple):
    """A weight as a file holds it.

    Attributes:
        data: ``(rows, bytes)`` in uint8, or floats ``(rows, columns)``.
        kind: name of its GGMLQuantizationType.
        said: how it differs from what the variant computes with; empty where it does not.
    """

    data: np.ndarray[Any, Any]
    kind: str
    said: str = ""


def stored(module: nn.Module, form: str, own: torch.dtype) -> Stored:
    """The weight ``(out, in)`` of a layer or an embedding.

    Args:
        module: dense, packed or with an adapter.
        form: what every weight is written in; empty for its own.
        own: the floating-point type of the model.
    """
    if form:
        again = isinstance(module, Packed) and not isinstance(module, SemiStructuredLinear)
        found = dense(_weight(module), form)
        return found._replace(said=f"rounded once more, to {found.kind}") if again else found
    if is_adapted(module):
        packed = isinstance(module.base_layer, Packed)
        return dense(_weight(module), "Q8_0" if packed else OWN[own])._replace(said=FUSED)
    if isinstance(module, GroupLinear):
        return _groups(module)
    if isinstance(module, Int8Linear | Int8Embedding | LLMInt8Linear):
        return _rows(module)
    if isinstance(module, Packed) and not isinstance(module, SemiStructuredLinear):
        found = dense(_weight(module), "Q8_0")
        return found._replace(said=ROUNDED.format(kind=found.kind))
    weight = module.get_buffer("weight") if isinstance(module, Packed) else module.get_parameter("weight")
    return dense(_weight(module), OWN.get(weight.dtype, OWN[own]))


def dense(weight: Tensor, form: str) -> Stored:
    """A dense weight in a form; in float16 where blocks of 32 do not divide its rows."""
    if form in ("Q8_0", "Q4_0") and weight.shape[-1] % BLOCK:
        form = "F16"
    whole = weight.detach().float().cpu().contiguous()
    if form == "F16" and whole.numel() and float(whole.abs().max()) > torch.finfo(torch.float16).max:
        form = "F32"
    if form == "F32":
        return Stored(whole.numpy(), form)
    if form == "F16":
        return Stored(whole.half().numpy(), form)
    if form == "BF16":
        return Stored(whole.bfloat16().view(torch.uint8).numpy(), form)
    gguf = library("gguf", "Writing .gguf files")
    return Stored(gguf.quantize(whole.numpy(), gguf.GGMLQuantizationType[form]), form)


def _weight(module: nn.Module) -> Tensor:
    return dense_weight(module)


def _rows(layer: Any) -> Stored:
    """Eight-bit codes with a scale a row."""
    scale = layer.scale.float().view(-1, 1)
    if isinstance(layer, LLMInt8Linear):
        scale = scale / 127
    return _eight(layer, layer.weight, scale.expand(-1, layer.in_features // BLOCK))


def _groups(layer: GroupLinear) -> Stored:
    """Codes in groups of columns, in 4 bits where they fit."""
    group = layer.options["group_size"] or layer.in_features
    if group % BLOCK or layer.in_features % BLOCK:
        found = dense(layer.dequantize(), "Q8_0")
        return found._replace(said=f"rounded once more, to {found.kind}, since their groups are no multiple of {BLOCK}")
    codes, middle = layer.codes(), 2 ** (layer.bits - 1)
    places = torch.arange(0, layer.in_features, BLOCK, device=codes.device) // group
    scale, zero = layer.scale[:, places], layer.zero[:, places]
    symmetric = bool((zero == middle).all())
    if layer.bits > 4:
        steps = codes.int().view(len(codes), -1, BLOCK) - zero.unsqueeze(-1)
        whole = bool((zero == zero.round()).all()) and int(steps.min()) >= -128 and int(steps.max()) <= 127
        if whole:
            return _eight(layer, steps.to(torch.int8).view(len(codes), -1), scale)
        found = dense(layer.dequantize(), "Q8_0")
        return found._replace(said=ROUNDED.format(kind=found.kind))
    lowest = -zero * scale
    if not _fits(scale) or not (symmetric or _fits(lowest.abs())):
        return dense(layer.dequantize(), "F32")
    if symmetric:
        return Stored(_blocks([scale], _nibbles(codes + (8 - middle))), "Q4_0", "" if _exact(scale) else NEAR)
    said = "" if _exact(scale) and _exact(lowest) else LOWEST
    return Stored(_blocks([scale, lowest], _nibbles(codes)), "Q4_1", said)


def _eight(layer: Any, codes: Tensor, scale: Tensor) -> Stored:
    """Eight-bit codes ``(out, in)`` with a scale a block ``(out, blocks)``."""
    if layer.in_features % BLOCK or not _fits(scale):
        return dense(layer.dequantize(), "F32")
    blocks = codes.contiguous().view(torch.uint8).view(len(codes), -1, BLOCK)
    return Stored(_blocks([scale], blocks), "Q8_0", "" if _exact(scale) else NEAR)


def _nibbles(codes: Tensor) -> Tensor:
    """``(out, in)`` -> ``(out, blocks, 16)``: byte j of a block holds the codes j and j + 16."""
    halves = codes.view(len(codes), -1, 2, BLOCK // 2)
    return halves[:, :, 0] | (halves[:, :, 1] << 4)


def _blocks(numbers: list[Tensor], codes: Tensor) -> np.ndarray[Any, Any]:
    """Float16 numbers ``(out, blocks)`` before the codes ``(out, blocks, bytes)`` of each block."""
    heads = [each.half().contiguous().view(torch.uint8).view(*codes.shape[:2], 2) for each in numbers]
    return torch.cat([*heads, codes], dim=-1).flatten(1).cpu().numpy()


def _exact(numbers: Tensor) -> bool:
    """Whether float16 holds them; of a group that is zero throughout the scale does not matter."""
    return bool(((numbers.half().float() == numbers) | (numbers.abs() < 1e-20)).all())


def _fits(numbers: Tensor) -> bool:
    """Whether float16 holds them as well as its precision allows: neither too large nor too small for it."""
    return bool((((numbers.half().float() - numbers).abs() <= MOVED * numbers) | (numbers < 1e-20)).all())
