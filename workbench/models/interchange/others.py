"""Layers that llm-compressor and others saved by compressed-tensors, as ours: the same codes.

Source: the compressors of https://github.com/vllm-project/compressed-tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.core.errors import InvalidInput
from workbench.models.interchange.bits import from_int32
from workbench.models.interchange.compressed import flipped
from workbench.models.interchange.form import JSON, Tensors, bias_of, parts_of
from workbench.models.packed import FP8Linear, GroupLinear, Int8DynamicLinear, Int8Linear, PackedLinear
from workbench.models.packed.groups import GROUP_SIZES

LAYOUTS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
STRATEGIES = ("group", "channel", "tensor")


class Codes(NamedTuple):
    """Integers of a layer ``(out, in)`` in uint8, counted from the lowest, and its zero points ``(out, groups)``."""

    codes: Tensor
    zero: Tensor | None
    bits: int


def layers(settings: JSON, tensors: Tensors) -> dict[str, PackedLinear]:
    """The packed layers of a checkpoint, by path.

    Raises:
        InvalidInput: it holds a layout or scales that none of our layers has.
    """
    schemes = [each for each in (settings.get("config_groups") or {}).values() if isinstance(each, dict)]
    _check(settings, schemes)
    dynamic = any((each.get("input_activations") or {}).get("num_bits") == 8 for each in schemes)
    paths = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    return {path: _layer(path, parts_of(path, tensors), dynamic, schemes) for path in paths}


def _check(settings: JSON, schemes: list[JSON]) -> None:
    layouts = {each.get("format") or settings.get("format") for each in schemes} | {settings.get("format")}
    weights = [each.get("weights") or {} for each in schemes]
    unknown = sorted(str(each)[:30] for each in layouts - {*LAYOUTS, None})
    unknown += [str(each["strategy"])[:30] for each in weights if each.get("strategy", "group") not in STRATEGIES]
    unknown += [name for name in ("transform_config", "sparsity_config") if _used(settings.get(name))]
    if unknown:
        raise InvalidInput(
            f"It is quantized by compressed-tensors in a layout that is not read here ({unknown[0]}): load the model "
            "that it was made from, and quantize that."
        )


def _used(more: JSON | None) -> bool:
    return bool(more) and (more or {}).get("format") != "dense" and (more or {}).get("config_groups", True) != {}


def _layer(path: str, parts: Tensors, dynamic: bool, schemes: list[JSON]) -> PackedLinear:
    scale = parts["weight_scale"].float()
    plain = parts.get("weight")
    if plain is not None and plain.dtype == torch.float8_e4m3fn:
        saved = {"weight": plain, "scale": _by_row(path, scale, len(plain))}
        return FP8Linear({"shape": list(plain.shape)}, saved | bias_of(parts))
    if plain is not None and plain.dtype != torch.int8:
        raise InvalidInput(f"The layer '{path}' has a scale and a weight in {plain.dtype}: it is not read.")
    found = _codes(path, parts, schemes)
    if found.bits == 8 and found.zero is None and scale.numel() in (1, len(found.codes)):
        saved = {"weight": flipped(found.codes).view(torch.int8), "scale": _by_row(path, scale, len(found.codes))}
        kind = Int8DynamicLinear if dynamic and plain is not None else Int8Linear
        return kind({"shape": list(found.codes.shape)}, saved | bias_of(parts))
    return _groups(path, found, scale, parts)


def _groups(path: str, found: Codes, scale: Tensor, parts: Tensors) -> PackedLinear:
    rows, columns = found.codes.shape
    scale = scale.reshape(-1, 1).expand(rows, 1) if scale.numel() in (1, rows) else scale
    group = 0 if scale.shape[1] == 1 else columns // scale.shape[1]
    index = parts.get("weight_g_idx")
    ordered = index is None or torch.equal(index.long(), torch.arange(columns, device=index.device) // group)
    if group not in GROUP_SIZES or not ordered or columns % max(group, 1):
        kind = f"groups of {group} columns" if ordered else "groups of columns that are not neighbours"
        raise InvalidInput(f"The layer '{path}' has {kind}, which none of our layers has: load the dense model.")
    zero = None if found.zero is None else found.zero.float()
    return GroupLinear.from_codes(found.codes, scale, zero, parts.get("bias"), found.bits, group)


def _codes(path: str, parts: Tensors, schemes: list[JSON]) -> Codes:
    zero = parts.get("weight_zero_point")
    if (plain := parts.get("weight")) is not None:
        steps = None if zero is None else flipped(zero.to(torch.int8).view(torch.uint8)).reshape(len(plain), -1)
        return Codes(flipped(plain.contiguous().view(torch.uint8)), steps, 8)
    rows, columns = (int(each) for each in parts["weight_shape"])
    words = parts["weight_packed"]
    fitting = [bits for bits in range(2, 9) if -(-columns * bits // 32) == words.shape[1]]
    named = [(each.get("weights") or {}).get("num_bits") for each in schemes]
    bits = next((each for each in fitting if each in named), 0)
    if not bits:
        raise InvalidInput(f"The layer '{path}' is packed in a width that its configuration does not name.")
    if zero is not None:
        zero = from_int32(zero.t().contiguous(), bits, rows).t().contiguous()
    return Codes(from_int32(words, bits, columns), zero, bits)


def _by_row(path: str, scale: Tensor, rows: int) -> Tensor:
    if scale.numel() not in (1, rows):
        raise InvalidInput(f"The layer '{path}' has scales for blocks of rows: load the dense model.")
    return scale.reshape(-1).expand(rows).contiguous()
