"""Integers and float8 with a scale a row or a group, as compressed-tensors saves them and vLLM reads them.

Source: the compressors of https://github.com/vllm-project/compressed-tensors.
"""

import json
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from workbench.models.interchange.bits import from_int32, to_int32
from workbench.models.interchange.form import JSON, Form, Reader, Tensors
from workbench.models.packed import FP8Linear, GroupLinear, Int8DynamicLinear, Int8Linear, Packed
from workbench.models.packed.groups import pack_bits, unpack_bits

TAKES = (nn.Linear,)
NAME = "compressed-tensors"
WITH_ZEROS = f"{NAME} with zero points"  # read by one set of rules for all layers, so not together with others
DYNAMIC = "rows"  # the form of layers whose activations are rounded too
SMALLEST_GROUP = 8  # columns; with scales for fewer, a layer is no smaller than in 16 bits


class Grid(NamedTuple):
    """How a layer in groups is written.

    Attributes:
        bits: width of a code.
        unit: columns with one scale; 0 for a whole row.
        zeros: "central" if every zero point is the middle code, so that none is written; "packed" if they are written
            in the codes' width, "plain" if in 8 bits, and "folded" if they are subtracted from codes of one bit more.
    """

    bits: int
    unit: int
    zeros: Literal["central", "packed", "plain", "folded"]


def forms(layers: dict[str, Packed]) -> dict[str, Form]:
    """The layers that the library knows, by path."""
    groups = {path: layer for path, layer in layers.items() if isinstance(layer, GroupLinear)}
    alone = {path: grid for path, layer in groups.items() if (grid := _grid(layer)) is not None}
    grids = _together(alone, groups)
    written = {path: _groups(groups[path], grid) for path, grid in grids.items()}
    for path, layer in layers.items():
        match layer:
            case Int8DynamicLinear() | FP8Linear():
                written[path] = _dynamic(layer)
            case Int8Linear():
                written[path] = _int8(layer)
    return written


def quantization(written: dict[str, Form], dense: list[str], dtype: torch.dtype) -> JSON:
    """What config.json says: the layers of each scheme, and which layers have none."""
    paths: dict[str, list[str]] = {}
    for path, form in written.items():
        paths.setdefault(json.dumps(form.scheme), []).append(path)
    schemes = [json.loads(scheme) for scheme in paths]
    targets = list(paths.values()) if len(paths) > 1 else [["Linear"]]
    formats = {scheme["format"] for scheme in schemes}
    return {
        "quant_method": NAME,
        "quantization_status": "compressed",
        "format": "mixed-precision" if len(formats) > 1 else formats.pop(),
        "config_groups": {
            f"group_{number}": scheme | {"targets": target}
            for number, (scheme, target) in enumerate(zip(schemes, targets, strict=True))
        },
        "ignore": dense,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    } | ({"dequantize": True} if next(iter(written.values())).library == WITH_ZEROS else {})


def _int8(layer: Int8Linear) -> Form:
    saved = layer.saved_tensors()
    tensors = {
        "weight_packed": to_int32(flipped(saved["weight"].view(torch.uint8)), 8),
        "weight_scale": saved["scale"].unsqueeze(1),
        "weight_shape": torch.tensor(layer.options["shape"]),
    }
    return Form("pack-int8", tensors, NAME, _scheme("pack-quantized", bits=8))


def _read_int8(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    codes = from_int32(tensors["weight_packed"], 8, options["shape"][1])
    return {"weight": flipped(codes).view(torch.int8), "scale": tensors["weight_scale"].squeeze(1)}


def _dynamic(layer: Int8DynamicLinear | FP8Linear) -> Form:
    """Activations are rounded as well, token by token; readers unpack nothing, so the codes stay as they are."""
    saved = layer.saved_tensors()
    layout = "float-quantized" if isinstance(layer, FP8Linear) else "int-quantized"
    tensors = {"weight": saved["weight"], "weight_scale": saved["scale"].unsqueeze(1)}
    return Form(DYNAMIC, tensors, NAME, _scheme(layout, bits=8, activations=True))


def _read_rows(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    return {"weight": tensors["weight"], "scale": tensors["weight_scale"].squeeze(1)}


def _grid(layer: GroupLinear) -> Grid | None:
    """How the layer would be written if there were no other; None if it is better dense.

    Groups that do not divide a row are cut into smaller ones with the same scale. Zero points are integers in the
    layout. Codes with others are shifted up to 8 bits, so that a zero point can be a fraction of a step: off by 1/32 of
    it at most for 4-bit codes, by 1/8 for 6-bit ones, which is the most allowed.
    """
    unit = math.gcd(layer.options["group_size"] or layer.in_features, layer.in_features)
    unit = unit if unit < layer.in_features else 0
    if 0 < unit < SMALLEST_GROUP:
        return None
    zero = dict(layer.named_buffers()).get("zeros")
    if zero is None:
        return Grid(layer.bits, unit, "central")
    if not zero.is_floating_point():
        return Grid(layer.bits, unit, "packed")
    shifted = (zero.float() * 2 ** (8 - layer.bits)).round()
    fits = layer.bits <= 6 and bool((shifted >= 0).all() and (shifted <= 255).all())
    return Grid(8, unit, "packed") if fits else None


def _together(grids: dict[str, Grid], layers: dict[str, GroupLinear]) -> dict[str, Grid]:
    """How the layers are written in one file.

    Transformers 5 reads packed zero points only while it unpacks all weights at once, by one scheme. So they are packed
    if all layers have the same width, with the smallest groups of any layer; otherwise they are folded into the codes.
    """
    if all(grid.zeros == "central" for grid in grids.values()):
        return grids
    if len({grid.bits for grid in grids.values()}) == 1:
        units = {grid.unit for grid in grids.values()}
        shared = math.gcd(*(grid.unit or layers[path].in_features for path, grid in grids.items()))
        unit = shared if len(units) > 1 else units.pop()
        return {path: Grid(grid.bits, unit, "packed") for path, grid in grids.items()}
    return {path: grid if grid.zeros == "central" else _folded(grid) for path, grid in grids.items()}


def _folded(grid: Grid) -> Grid:
    return Grid(grid.bits + 1, grid.unit, "folded") if grid.bits < 8 else Grid(8, grid.unit, "plain")


def _groups(layer: GroupLinear, grid: Grid) -> Form:
    saved, columns = layer.saved_tensors(), layer.in_features
    every = (layer.options["group_size"] or columns) // (grid.unit or columns)
    zero, own = saved.get("zeros"), {}
    shift = grid.bits - layer.bits if zero is not None and zero.is_floating_point() else 0
    if zero is not None and (shift or grid.zeros == "folded"):
        own["zeros"] = zero

    def cut(values: Tensor) -> Tensor:
        return values.repeat_interleave(every, dim=1)[:, : columns // (grid.unit or columns)].contiguous()

    codes = unpack_bits(saved["weight"], layer.bits)[:, :columns] << shift
    middle = torch.full_like(saved["scales"], 2 ** (layer.bits - 1))
    steps = cut(((middle if zero is None else zero).float() * 2**shift).round().to(torch.uint8))
    tensors = {"weight_scale": cut(saved["scales"].float() / 2**shift)}
    match grid.zeros:
        case "plain":
            tensors["weight"] = flipped(codes).view(torch.int8)
            tensors["weight_zero_point"] = flipped(steps).view(torch.int8)
        case "packed":
            tensors["weight_zero_point"] = to_int32(steps.t(), grid.bits).t().contiguous()
        case "folded":
            codes = codes + 2**layer.bits - steps.repeat_interleave(grid.unit or columns, dim=1)
    if grid.zeros != "plain":
        tensors |= {"weight_packed": to_int32(codes, grid.bits), "weight_shape": torch.tensor(layer.options["shape"])}
    return Form(
        reader="groups",
        tensors=tensors,
        library=WITH_ZEROS if grid.zeros == "packed" else NAME,
        scheme=_scheme(
            "naive-quantized" if grid.zeros == "plain" else "pack-quantized",
            grid.bits,
            grid.unit,
            central=grid.zeros in ("central", "folded"),
        ),
        own=own,
        facts={"every": every, "shift": shift, "grid": grid._asdict(), "central": zero is None},
    )


def _read_groups(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    (rows, columns), bits = options["shape"], options["bits"]
    grid, every, shift = Grid(**facts["grid"]), facts["every"], facts["shift"]
    zero = tensors.get("zeros")
    if grid.zeros == "plain":
        codes = flipped(tensors["weight"].view(torch.uint8))
    else:
        codes = from_int32(tensors["weight_packed"], grid.bits, columns)
    if zero is not None and grid.zeros == "folded":
        codes = codes - 2**bits + zero.repeat_interleave(options["group_size"] or columns, dim=1)[:, :columns]
    if zero is None and not facts["central"]:
        written = tensors["weight_zero_point"]
        plain = grid.zeros == "plain"
        steps = flipped(written.view(torch.uint8)) if plain else from_int32(written.t(), grid.bits, rows).t()
        zero = steps[:, ::every].clone(memory_format=torch.contiguous_format)
    scale = tensors["weight_scale"][:, ::every] * 2**shift
    saved = {"weight": pack_bits(codes >> shift, bits), "scales": scale.bfloat16().contiguous()}
    return saved if zero is None else saved | {"zeros": zero}


def flipped(codes: Tensor) -> Tensor:
    """Bytes counted from the lowest code to ones counted from the middle, and back."""
    return codes ^ 128


def _scheme(layout: str, bits: int, unit: int = 0, central: bool = True, activations: bool = False) -> JSON:
    """A scheme of the configuration, without the layers it holds for."""
    number = {"num_bits": bits, "type": "float" if layout == "float-quantized" else "int", "symmetric": central}
    scales = {"strategy": "group", "group_size": unit} if unit else {"strategy": "channel", "group_size": None}
    by_token = number | {"strategy": "token", "group_size": None, "dynamic": True}
    return {
        "format": layout,
        "weights": number | scales | {"dynamic": False},
        "input_activations": by_token if activations else None,
        "output_activations": None,
    }


READERS: dict[str, Reader] = {"pack-int8": _read_int8, "groups": _read_groups, DYNAMIC: _read_rows}
