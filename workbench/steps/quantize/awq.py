"""AWQ: input channels that are large get finer steps, by scaling weights up and what feeds them down."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.layers.activations import LayerInput
from workbench.layers.scaling import divided_norm, followed, multiply, readers, weight_of
from workbench.models.packed import replace_module
from workbench.steps.quantize.rounding import (
    Codes,
    GroupStep,
    dequantize,
    in_groups,
    minmax_grid,
    round_to,
)

RATIOS = 20  # exponents tried, from 0 to 1
SHRINKS = tuple(1 - step / 20 for step in range(10))  # factors on a group's range, down to 0.55
NOT_CLIPPED = ("q_proj", "k_proj")  # their product is not linear in them; the authors leave them out too


class AWQ(GroupStep):
    """Scales up the weights of large input channels before rounding, and scales the input down to match.

    Rounding then hurts the channels that matter least. Needs one pass over calibration text; corrects no weight, so
    it depends less on that text than GPTQ. Each group's range is also clipped to where the error is least.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.00978"
    needs_data: ClassVar[bool] = True
    hessians: ClassVar[bool] = True
    clip: bool = Field(
        default=True, description="Search each group's range too, so that a few large weights may be clipped."
    )

    def quantize(self, weight: Tensor, inputs: LayerInput | None) -> Codes:
        """Round to a grid clipped where the output error is least."""
        assert inputs is not None
        assert inputs.hessian is not None
        shrink = search_clip(weight, inputs.hessian, self) if self.clip else 1.0
        grid = minmax_grid(weight, self.bits, self.group_size, self.symmetric, shrink)
        return round_to(weight, grid, self.bits, self.group_size)

    def change(self, weight: Tensor, inputs: LayerInput | None) -> Tensor:
        """As for a layer whose input could be scaled."""
        assert inputs is not None
        scale = search_scale([weight], inputs, self)
        return dequantize(self.quantize(weight * scale, scaled_input(inputs, scale)), self.group_size) / scale

    def replace_block(
        self, model: PreTrainedModel, layers: Mapping[str, LayerInput | None], chosen: frozenset[str]
    ) -> None:
        """Scale what can be scaled without changing the block's function, then round."""
        inputs = {path: seen for path, seen in layers.items() if seen is not None}
        for path, feeder in followed(inputs, chosen).items():
            scale = search_scale([weight_of(model, path)], inputs[path], self)
            if weight_of(model, feeder).shape[0] == len(scale):
                multiply(model, feeder, rows=1 / scale)
                multiply(model, path, columns=scale)
                inputs[path] = scaled_input(inputs[path], scale)
        for source, paths in readers(inputs).items():
            if chosen.issuperset(paths):
                scale = search_scale([weight_of(model, path) for path in paths], inputs[paths[0]], self)
                norm = divided_norm(model.get_submodule(source), scale)
                if norm is not None:
                    replace_module(model, source, norm)
                    changed = scaled_input(inputs[paths[0]], scale)
                    for path in paths:
                        multiply(model, path, columns=scale)
                        inputs[path] = changed
        for path in layers:
            if path in chosen:
                layer = model.get_submodule(path)
                quiet = self.model_copy(update={"clip": self.clip and not path.endswith(NOT_CLIPPED)})
                replace_module(model, path, self.pack(layer, quiet.quantize(weight_of(model, path), inputs[path])))


def search_scale(weights: list[Tensor], inputs: LayerInput, step: GroupStep) -> Tensor:
    """Factors ``(in,)`` on the input channels of layers that read one input: the best power of its mean size.

    The error is that of the layers' outputs, exact from the second moments of the input.

    Reference: Lin et al., AWQ, 2024, section 3.2. The authors take the error of the whole attention for the layers that
    feed it; here every layer's own output counts.
    """
    assert inputs.hessian is not None
    best, lowest = torch.ones_like(inputs.mean), float("inf")
    for index in range(RATIOS):
        scale = inputs.mean.clamp(min=1e-4).pow(index / RATIOS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = 0.0
        for weight in weights:
            scaled = weight * scale
            grid = minmax_grid(scaled, step.bits, step.group_size, step.symmetric)
            rounded = dequantize(round_to(scaled, grid, step.bits, step.group_size), step.group_size)
            off = rounded / scale - weight
            error += float(((off @ inputs.hessian) * off).sum())
        if error < lowest:
            best, lowest = scale, error
    return best


def search_clip(weight: Tensor, hessian: Tensor, step: GroupStep) -> Tensor:
    """Factors ``(out, groups)`` on the range of each group that give the least output error of that group alone."""
    columns = torch.arange(weight.shape[1], device=weight.device)
    diagonal = [hessian[part][:, part] for part in torch.split(columns, step.group_size)]
    blocks = torch.stack([nn.functional.pad(each, (0, step.group_size - len(each)) * 2) for each in diagonal])
    best = lowest = None
    for factor in SHRINKS:
        grid = minmax_grid(weight, step.bits, step.group_size, step.symmetric, factor)
        off = dequantize(round_to(weight, grid, step.bits, step.group_size), step.group_size) - weight
        grouped = in_groups(off, step.group_size).transpose(0, 1)
        error = ((grouped @ blocks) * grouped).sum(dim=-1).t()
        if best is None or lowest is None:
            best, lowest = torch.full_like(error, factor), error
        else:
            best = torch.where(error < lowest, factor, best)
            lowest = torch.minimum(error, lowest)
    assert best is not None
    return best


def scaled_input(inputs: LayerInput, scale: Tensor) -> LayerInput:
    """What is seen once every channel is divided by its factor."""
    assert inputs.hessian is not None
    hessian = inputs.hessian / torch.outer(scale, scale)
    return LayerInput(
        inputs.tokens, inputs.norm / scale, inputs.mean / scale, inputs.peak / scale, hessian, inputs.source
    )
