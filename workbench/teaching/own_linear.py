"""A layer with an adapter whose product somebody else wrote."""

from typing import Any, Protocol

from torch import Tensor

from workbench.models.adapters import NAME
from workbench.models.lora import AdaptedLinear
from workbench.models.packed import dense_weight


class Parts(Protocol):
    """Who wrote it."""

    def product(self, x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``x (..., in), weight (out, in), a (rank, in), b (out, rank)`` to ``(..., out)``."""


class OwnLinear(AdaptedLinear):
    """peft's layer, but for its product."""

    parts: Parts

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x (..., in)`` to ``(..., out)``."""
        base: Any = self.base_layer
        factors: Any = (self.lora_A[NAME].weight, self.lora_B[NAME].weight)
        out = self.parts.product(x, dense_weight(base).to(x.dtype), *(each.to(x.dtype) for each in factors))
        return out if base.bias is None else out + base.bias.to(x.dtype)
