"""LoRA in two parts that a learner writes: how the second factor begins, and the product of a layer."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from workbench.models.adapters import NAME, adapted_layers
from workbench.models.lora import AdaptedLinear
from workbench.models.packed import replace_module
from workbench.steps import finetune
from workbench.variant import Variant


class LoRAParts(finetune.LoRA):
    """Trains two thin matrices beside every linear layer, as a subclass says; the rest is `finetune.LoRA`.

    The first factor is drawn as peft draws it, so that the same parts lead to the same weights.
    """

    paper: ClassVar[str] = ""

    def start(self, out: int) -> Tensor:
        """The second factor ``(out, rank)`` before training; the first is drawn at random."""
        raise NotImplementedError

    def product(self, x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The layer: ``x (..., in), weight (out, in), a (rank, in), b (out, rank)`` to ``(..., out)``."""
        raise NotImplementedError

    def prepare(self, variant: Variant) -> PreTrainedModel:
        """The model with adapters that begin and multiply as this step says."""
        model = super().prepare(variant)
        for path, layer in list(adapted_layers(model)):
            own = _OwnLinear.__new__(_OwnLinear)
            own.__dict__ = vars(layer) | {"parts": self}
            factor = layer.lora_B[NAME].weight.detach()
            factor.copy_(self.start(len(factor)).expand_as(factor))
            replace_module(model, path, own)
        return model


class _OwnLinear(AdaptedLinear):
    """A layer with an adapter whose product is a learner's."""

    parts: LoRAParts

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x (..., in)`` to ``(..., out)``."""
        base: Any = self.base_layer
        factors: Any = (self.lora_A[NAME].weight, self.lora_B[NAME].weight)
        out = self.parts.product(x, base.weight.to(x.dtype), *(each.to(x.dtype) for each in factors))
        return out if base.bias is None else out + base.bias.to(x.dtype)
