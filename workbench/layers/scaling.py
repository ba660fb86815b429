"""Input channels of layers scaled, and scaled back where they are made: the model computes what it did."""

from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.layers.activations import LayerInput
from workbench.layers.step import with_weight
from workbench.models.packed import dense_weight, replace_module

# A layer whose rows are the next layer's input channels, one by one, and a sibling that proves it.
FOLLOWED = (("up_proj", "down_proj", "gate_proj"), ("v_proj", "o_proj", "q_proj"))


def readers(inputs: Mapping[str, LayerInput]) -> dict[str, list[str]]:
    """Paths by the normalization that all of them read."""
    read = sorted((seen.source, path) for path, seen in inputs.items() if seen.source)
    return {source: [path for _, path in pairs] for source, pairs in groupby(read, key=lambda pair: pair[0])}


def followed(inputs: Mapping[str, LayerInput], chosen: Collection[str]) -> dict[str, str]:
    """A layer's path to that of the layer whose rows are its input channels."""
    found = {}
    for first, second, sibling in FOLLOWED:
        for path in chosen:
            parent, _, name = path.rpartition(".")
            if name == second and f"{parent}.{first}" in chosen and f"{parent}.{sibling}" in inputs:
                found[path] = f"{parent}.{first}"
    # A normalization in between would undo the scale.
    return {path: found[path] for path in sorted(found) if path in inputs and not inputs[path].source}


def weight_of(model: PreTrainedModel, path: str) -> Tensor:
    """Of a dense layer ``(out, in)`` in float32."""
    return dense_weight(model.get_submodule(path)).float()


def multiply(model: PreTrainedModel, path: str, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Replace a dense layer by one with rows or columns of its weight scaled, its bias with the rows."""
    layer = model.get_submodule(path)
    weight, bias = dense_weight(layer), layer.bias
    if rows is not None:
        changed = with_weight(layer, (weight * rows.unsqueeze(1)).to(weight.dtype))
        if isinstance(bias, Tensor):
            changed.bias = nn.Parameter((bias * rows).to(bias.dtype), requires_grad=False)
        replace_module(model, path, changed)
    if columns is not None:
        replace_module(model, path, with_weight(layer, (weight * columns).to(weight.dtype)))


def divided_norm(norm: nn.Module, scale: Tensor) -> nn.Module | None:
    """A normalization whose output is that of the given one divided by `scale`; None if it cannot be had so.

    Some models multiply by the weight, some by one plus the weight; which one is tried out.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if not isinstance(weight, Tensor) or weight.shape != scale.shape:
        return None
    x = torch.randn(4, len(scale), generator=torch.Generator().manual_seed(0)).to(weight)
    wanted = norm(x).float() / scale
    tolerance = 1e-2 if weight.dtype != torch.float32 else 1e-4  # of all channels together: one may round worse
    for new in (weight / scale, (1 + weight) / scale - 1):
        tried: Any = with_weight(norm, new.to(weight.dtype))
        if isinstance(bias, Tensor):
            tried.bias = nn.Parameter((bias / scale).to(bias.dtype), requires_grad=False)
        if (tried(x).float() - wanted).norm() <= tolerance * wanted.norm():
            return tried  # type: ignore[no-any-return]
    return None
