"""Rounding to evenly spaced integers: the grid every method here shares, and the method that just rounds."""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.layers.activations import LayerInput
from workbench.layers.step import LayerStep
from workbench.measurement.kernels import token_ratio
from workbench.models import sharing
from workbench.models.experts import as_layers
from workbench.models.packed import GroupLinear, Int8Linear, PackedLinear, dense_weight, stored_scale
from workbench.step import Forecast
from workbench.steps.quantize.head import dense_head, pack_head
from workbench.variant import Variant


class Grid(NamedTuple):
    """Where the integers of a weight lie: ``weight = (code - zero) * scale``, one scale and zero a group of columns.

    Attributes:
        scale: ``(out, groups)``, in the precision that is stored.
        zero: ``(out, groups)``, in codes.
    """

    scale: Tensor
    zero: Tensor


class Codes(NamedTuple):
    """A weight as integers.

    Attributes:
        codes: ``(out, in)`` uint8, from 0 to ``2 ** bits - 1``.
        grid: their scales and zeros.
    """

    codes: Tensor
    grid: Grid


class GroupStep(LayerStep):
    """Stores the weights of every linear layer in the blocks as integers, with a scale for each group of columns."""

    caveat: ClassVar[str] = (
        "not faster: only 4 bits have a kernel that multiplies straight from them; other widths are unpacked first"
    )
    strength: ClassVar[str] = "bits"
    strengths: ClassVar[tuple[float, ...]] = (2, 3, 4, 8)
    bits: int = Field(
        default=4, ge=2, le=8, description="Bits a weight; 4 has a fast kernel, other widths only save memory."
    )
    group_size: Literal[32, 64, 128, 256] = Field(
        default=64,
        description="Weights along a row that share a scale; the last group may be shorter. Smaller is more exact.",
    )
    symmetric: bool = Field(
        default=False, description="Fix the zero in the middle of the codes: a little smaller, a little less exact."
    )
    head: bool = Field(
        default=True,
        description="Store the output head (and an embedding tied to it) in 8 bits; it is read for every token.",
    )

    def quantize(self, weight: Tensor, inputs: LayerInput | None) -> Codes:
        """The codes of a weight ``(out, in)`` in float32; the pure method."""
        raise NotImplementedError

    def change(self, weight: Tensor, inputs: LayerInput | None) -> Tensor:
        """The weight as the codes give it back."""
        return dequantize(self.quantize(weight, inputs), self.group_size)

    def replace(self, layer: nn.Module, inputs: LayerInput | None) -> nn.Module:
        """The layer with its weight packed."""
        return self.pack(layer, self.quantize(dense_weight(layer).float(), inputs))

    def pack(self, layer: nn.Module, found: Codes) -> nn.Module:
        """A layer of these codes and the given layer's bias."""
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        codes, (scale, zero) = found
        return GroupLinear.from_codes(codes, scale, zero, bias, self.bits, self.group_size)

    def finish(self, model: PreTrainedModel) -> None:
        """Pack the output head, if wanted."""
        if self.head:
            pack_head(model)

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes from the layers' shapes."""
        model = as_layers(variant.model)
        chosen = [model.get_submodule(path) for path in self.layers(variant)]
        extra = (16 if self.symmetric else 32) / self.group_size
        packed = sum(dense_weight(layer).numel() * (self.bits + extra) / 8 for layer in chosen)
        head = dense_head(variant.model) if self.head else None
        if head is not None:
            packed += head.numel() + 4 * head.shape[0]
            chosen.append(model.get_output_embeddings())
        dense = sharing.total_bytes(chosen)
        ratio = token_ratio(variant, chosen, lambda weight: self._alike(weight, head))
        return Forecast(round(packed), round(variant.total_bytes - dense + packed), None, ratio)

    def _alike(self, weight: Tensor, head: Tensor | None) -> PackedLinear:
        """A layer as fast as a packed weight ``(out, in)``, or part of the head, would be."""
        if head is not None and weight.data_ptr() == head.data_ptr():
            return Int8Linear.pack(weight, None)
        grid = minmax_grid(weight.float(), self.bits, self.group_size, self.symmetric)
        codes = round_to(weight.float(), grid, self.bits, self.group_size)
        return GroupLinear.from_codes(codes.codes, *grid, None, self.bits, self.group_size)


class RTN(GroupStep):
    """Rounds every weight to the nearest of evenly spaced levels, group by group.

    The plainest method: no data, no search, seconds to apply. At 8 bits it is enough; at 4 bits and below compare it
    with GPTQ and AWQ, which spend a calibration pass to lose less at the same size.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2103.13630"

    def quantize(self, weight: Tensor, inputs: LayerInput | None) -> Codes:
        """Round to nearest."""
        grid = minmax_grid(weight, self.bits, self.group_size, self.symmetric)
        return round_to(weight, grid, self.bits, self.group_size)


def minmax_grid(weight: Tensor, bits: int, group_size: int, symmetric: bool, shrink: Tensor | float = 1.0) -> Grid:
    """The grid that spans each group's lowest and highest weight, zero included.

    Args:
        weight: ``(out, in)``.
        shrink: factor on the range, ``(out, groups)`` or one for all; below 1 the largest weights are clipped.
    """
    grouped = in_groups(weight, group_size)
    low = grouped.amin(dim=-1).clamp(max=0) * shrink
    high = grouped.amax(dim=-1).clamp(min=0) * shrink
    top = 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = torch.maximum(high, -low) / (middle - 0.5)
        return Grid(stored_scale(scale.clamp(min=1e-8)), torch.full_like(scale, float(middle)))
    scale = stored_scale(((high - low) / top).clamp(min=1e-8))
    return Grid(scale, (-low / scale).round().clamp(0, top))


def round_to(weight: Tensor, grid: Grid, bits: int, group_size: int) -> Codes:
    """The nearest code of every weight ``(out, in)``."""
    grouped = in_groups(weight, group_size)
    codes = (grouped / grid.scale.unsqueeze(-1) + grid.zero.unsqueeze(-1)).round_().clamp_(0, 2**bits - 1)
    return Codes(codes.to(torch.uint8).view(weight.shape[0], -1)[:, : weight.shape[1]], grid)


def dequantize(found: Codes, group_size: int) -> Tensor:
    """The weight ``(out, in)`` that codes stand for, in float32."""
    codes, (scale, zero) = found
    grouped = in_groups(codes.float(), group_size)
    weight = (grouped - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    return weight.view(codes.shape[0], -1)[:, : codes.shape[1]]


def in_groups(weight: Tensor, group_size: int) -> Tensor:
    """``(out, in) -> (out, groups, group_size)``; a last, shorter group is filled with its last column."""
    short = -weight.shape[1] % group_size
    if short:
        weight = torch.cat([weight, weight[:, -1:].expand(-1, short)], dim=1)
    return weight.view(weight.shape[0], -1, group_size)
