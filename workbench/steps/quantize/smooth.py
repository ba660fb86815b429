"""SmoothQuant: what is large in the activations moves into the weights before both are rounded to 8 bits."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.layers.activations import LayerInput
from workbench.layers.scaling import divided_norm, followed, multiply, readers, weight_of
from workbench.layers.step import LayerStep
from workbench.measurement.kernels import token_ratio
from workbench.models import sharing
from workbench.models.experts import as_layers
from workbench.models.packed import Int8DynamicLinear, dense_weight, replace_module
from workbench.step import Forecast
from workbench.steps.quantize.head import dense_head, pack_head
from workbench.variant import Variant

LEAST = 1e-5  # of a peak, below which it counts as this, as the authors do


class SmoothQuant(LayerStep):
    """Moves what is large in a few activation channels into the weights, then rounds both to 8 bits (W8A8).

    A token's scale must span its largest channel, and the others get what is left of the 255 steps. Dividing a channel
    by a factor where it is made, and multiplying the weights that read it by the same, changes nothing that is
    computed, and evens the channels out. As fast as Int8Dynamic, and closer to the model; needs calibration text.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2211.10438"
    caveat: ClassVar[str] = "not faster: rounding the activations costs as much as the integer product saves"
    needs_data: ClassVar[bool] = True
    alpha: float = Field(
        default=0.5, ge=0.0, le=1.0, description="How much of an activation's size moves: 0 for none, 1 for all of it."
    )
    inner: bool = Field(
        default=True,
        description="Even out what the down and output projections read too; the authors leave these as they are.",
    )
    head: bool = Field(
        default=True,
        description="Store the output head (and an embedding tied to it) in 8 bits; it is read for every token.",
    )

    def change(self, weight: Tensor, inputs: LayerInput | None) -> Tensor:
        """As for a layer whose input could be scaled."""
        assert inputs is not None
        scale = smoothing([weight], inputs.peak, self.alpha)
        return Int8DynamicLinear.pack(weight * scale, None).dequantize() / scale

    def replace_block(
        self, model: PreTrainedModel, layers: Mapping[str, LayerInput | None], chosen: frozenset[str]
    ) -> None:
        """Scale what can be scaled without changing the block's function, then pack."""
        inputs = {path: seen for path, seen in layers.items() if seen is not None}
        for path, feeder in (followed(inputs, chosen) if self.inner else {}).items():
            scale = smoothing([weight_of(model, path)], inputs[path].peak, self.alpha)
            if weight_of(model, feeder).shape[0] == len(scale):
                multiply(model, feeder, rows=1 / scale)
                multiply(model, path, columns=scale)
        for source, paths in readers(inputs).items():
            if chosen.issuperset(paths):
                scale = smoothing([weight_of(model, path) for path in paths], inputs[paths[0]].peak, self.alpha)
                norm = divided_norm(model.get_submodule(source), scale)
                if norm is not None:
                    replace_module(model, source, norm)
                    for path in paths:
                        multiply(model, path, columns=scale)
        for path in chosen.intersection(layers):
            replace_module(model, path, self.packed(model.get_submodule(path)))

    def packed(self, layer: nn.Module) -> nn.Module:
        """A layer in 8 bits that rounds what it reads."""
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        return Int8DynamicLinear.pack(dense_weight(layer), bias)

    def finish(self, model: PreTrainedModel) -> None:
        """Pack the output head, if wanted."""
        if self.head:
            pack_head(model, Int8DynamicLinear)

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes from the layers' shapes."""
        model = as_layers(variant.model)
        chosen = [model.get_submodule(path) for path in self.layers(variant)]
        head = dense_head(variant.model) if self.head else None
        if head is not None:
            chosen.append(model.get_output_embeddings())
        packed = sum(dense_weight(each).numel() + 4 * dense_weight(each).shape[0] for each in chosen)
        ratio = token_ratio(variant, chosen, lambda weight: Int8DynamicLinear.pack(weight, None))
        return Forecast(packed, variant.total_bytes - sharing.total_bytes(chosen) + packed, None, ratio)


def smoothing(weights: list[Tensor], peak: Tensor, alpha: float) -> Tensor:
    """Factors ``(in,)`` on the columns of weights ``(out, in)`` that read one input; the input is divided by them.

    Reference: Xiao et al., SmoothQuant, 2023, equation 4.
    """
    largest = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0).clamp(min=LEAST)
    return (peak.clamp(min=LEAST).pow(alpha) / largest.pow(1 - alpha)).clamp(min=LEAST)
