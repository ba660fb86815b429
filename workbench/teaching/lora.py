"""LoRA in two parts that a learner writes: how the second factor begins, and the product of a layer."""

from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from workbench.models.adapters import NAME, adapted_layers
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
        from workbench.teaching.own_linear import OwnLinear  # after peft, which is noisy unless imported by ours

        for path, layer in list(adapted_layers(model)):
            own = OwnLinear.__new__(OwnLinear)
            own.__dict__ = vars(layer) | {"parts": self}
            factor = layer.lora_B[NAME].weight.detach()
            factor.copy_(self.start(len(factor)).expand_as(factor))
            replace_module(model, path, own)
        return model
