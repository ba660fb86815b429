"""Packed layers that other readers see as dense."""

import torch
from torch import Tensor

from workbench.models.experts import HALVES
from workbench.models.interchange.form import JSON, Form, Reader, Tensors
from workbench.models.packed import Int8Linear, Packed, SemiStructuredLinear

ROUNDED = ("rounded", "own")  # readers of forms that other readers see in 16 bits


def dense(layer: Packed, transposed: bool) -> Form:
    """The layer as a weight in 16 bits, for readers that have no layout for it; a sparse one in its own type, exactly.

    A sparse layer is packed again from that weight. Int8 codes are found again from it and their scale, which is made
    sure of here. Of other kinds the tensors are kept beside it.

    Args:
        layer: the layer.
        transposed: whether other readers want ``(in, out)``, as GPT-2's do.
    """
    saved = {name: tensor for name, tensor in layer.saved_tensors().items() if name != "bias"}
    weight = layer.dequantize()
    if isinstance(layer, SemiStructuredLinear):
        return _form("sparse", weight.to(saved["weight"].dtype), transposed, {})
    halves = [half for half in map(weight.to, HALVES) if half.isfinite().all()]
    if isinstance(layer, Int8Linear):
        for half in halves:
            if torch.equal(_int8_codes(half, saved["scale"]), saved["weight"]):
                return _form("rounded", half, transposed, {"scale": saved["scale"]})
    exact = (half for half in halves if torch.equal(half.float(), weight))
    return _form("own", next(exact, halves[0]), transposed, saved)


def _form(reader: str, weight: Tensor, transposed: bool, own: Tensors) -> Form:
    weight = (weight.t() if transposed else weight).contiguous()
    return Form(reader, {"weight": weight}, own=own, facts={"transposed": transposed})


def _read_rounded(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    return {"weight": _int8_codes(_seen(tensors, facts), tensors["scale"]), "scale": tensors["scale"]}


def _read_sparse(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    return SemiStructuredLinear.pack_weight(_seen(tensors, facts))


def _read_own(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    return tensors


def _seen(tensors: Tensors, facts: JSON) -> Tensor:
    """The weight ``(out, in)`` that other readers see."""
    return tensors["weight"].t() if facts["transposed"] else tensors["weight"]


def _int8_codes(weight: Tensor, scale: Tensor) -> Tensor:
    """A code is at most 127, so 16 bits move it by a quarter at most, unless the row is tiny."""
    return (weight.float() / scale.unsqueeze(1)).round_().to(torch.int8).contiguous()


READERS: dict[str, Reader] = {"rounded": _read_rounded, "sparse": _read_sparse, "own": _read_own}
