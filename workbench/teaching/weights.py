"""Whether two variants compute the same, layer by layer, within 1 % of what was changed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.models.blocks import decoder_blocks
from workbench.models.experts import as_layers
from workbench.models.packed import Conv1D, Packed, dense_weight, linear_layers
from workbench.variant import Variant

WITHIN = 0.01  # of what the reference changes in an output row
ROWS = 0.1  # of a matrix that may lie beyond: one code that rounds the other way moves all of a row's that come after


class Apart(NamedTuple):
    """How a matrix differs from the reference's.

    Attributes:
        path: of its layer.
        rows: share of its output rows that are off by more than 1 % of what the reference changes.
        zeros: share of weights that are 0, here and in the reference.
    """

    path: str
    rows: float
    zeros: tuple[float, float]

    @property
    def differs(self) -> bool:
        """Whether it is another matrix, and not the same but for rounding."""
        return self.rows > ROWS


def layer_paths(variant: Variant) -> list[str]:
    """Paths of the linear layers of the decoder blocks, in order."""
    root, blocks = decoder_blocks(as_layers(variant.model))
    return [f"{root}.{path}" for path, _ in linear_layers(blocks)]


def weight_of(variant: Variant, path: str) -> Tensor:
    """The weight ``(out, in)`` in float32 that a layer multiplies by; of an unknown kind, what it makes of ones.

    Raises:
        AttributeError: there is no such layer.
    """
    layer: Any = variant.model.get_submodule(path)
    if isinstance(layer, nn.Linear | Conv1D | Packed):
        return dense_weight(layer).detach().float()
    base = getattr(layer, "base_layer", layer)
    columns = dense_weight(base).shape[1]
    with torch.no_grad():
        ones = torch.eye(columns, device=variant.device, dtype=variant.dtype)
        made: Tensor = layer(ones) - layer(torch.zeros_like(ones[:1]))
    return made.t().float()


def apart(mine: Variant, reference: Variant, before: Variant) -> Iterator[Apart]:
    """Every layer of a variant against the reference's, both made of the same one."""
    for path in layer_paths(before):
        ours, theirs, old = (weight_of(each, path) for each in (mine, reference, before))
        if ours.shape != theirs.shape:
            yield Apart(path, 1.0, (0.0, 0.0))
            continue
        off, moved = (ours - theirs).norm(dim=1), (theirs - old).norm(dim=1)
        beyond = (off > WITHIN * moved) | ~torch.isfinite(off)
        zeros = tuple(float((each == 0).float().mean()) for each in (ours, theirs))
        yield Apart(path, float(beyond.float().mean()), (zeros[0], zeros[1]))


def first_apart(mine: Variant, reference: Variant, before: Variant) -> Apart | None:
    """The first layer that differs; None if all are the same."""
    return next((each for each in apart(mine, reference, before) if each.differs), None)
