"""A model made to answer quickly: lean blocks, and dense float32 layers on the fastest of torch's products on this CPU.

`torch.nn.Linear` always multiplies float32 with MKL. For a few rows, as in a batch or behind a draft, another order of
the factors or oneDNN, which torch brings too, can be twice as fast; the products differ in the last bits only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.models import sharing
from workbench.models.identity import marks
from workbench.models.packed import linear_layers, replace_module
from workbench.models.packed.products import Product, product_of
from workbench.runtime import lean
from workbench.runtime.trial import way_of

SWAPPED_ROWS = 64  # beyond these the order of the factors makes no difference
LEAST_BYTES = 1 << 18  # of a weight
SAMPLE = 16_384  # outputs of a wide layer that are tried at once: few of them may be multiplied in another way

_made: "WeakKeyDictionary[PreTrainedModel, _Made]" = WeakKeyDictionary()


class DenseLinear(nn.Module):
    """A dense linear layer that chooses its product by trial; it shares the weight of the layer it stands for."""

    options: Mapping[str, Any] = {}

    def __init__(self, weight: Tensor, bias: Tensor | None, alike: "Sequence[Tensor] | None" = None) -> None:
        super().__init__()
        self.weight, self.bias, self._alike = weight, bias, alike
        self.out_features, self.in_features = weight.shape
        self.uses: dict[tuple[int, torch.dtype], Product] = {}

    def forward(self, x: Tensor) -> Tensor:
        """``x (..., in) -> (..., out)``."""
        if x.numel() <= self.in_features:  # all read the weight once, and torch's own way to call it is the shortest
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.in_features)
        return product_of(self, rows)(self, rows).view(*x.shape[:-1], self.out_features)

    def products(self, rows: int) -> Mapping[str, Product]:
        """The usual one, and what may be faster."""
        found: dict[str, Product] = {"MKL": usual}
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            found["oneDNN"] = onednn
        if rows <= SWAPPED_ROWS:
            found["MKL, weight first"] = weight_first
        return found

    def samples(self, outputs: int) -> list["DenseLinear"]:
        """Layers of such a shape, to try products on in turn; a wide one in parts."""
        size = min(self.out_features, SAMPLE)
        parts = [
            weight.detach()[first : first + size]
            for weight in self._alike or [self.weight]
            for first in range(0, self.out_features - size + 1, size)
        ]
        return [DenseLinear(nn.Parameter(part, requires_grad=False), None) for part in parts]


def usual(layer: DenseLinear, rows: Tensor) -> Tensor:
    """As `torch.nn.Linear`."""
    return F.linear(rows, layer.weight, layer.bias)


def onednn(layer: DenseLinear, rows: Tensor) -> Tensor:
    """By oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, layer.weight, layer.bias, "none", [], "")
    return product


def weight_first(layer: DenseLinear, rows: Tensor) -> Tensor:
    """The weight times the rows, turned round again."""
    product = torch.mm(layer.weight, rows.t()).t().contiguous()
    return product if layer.bias is None else product.add_(layer.bias)


def quickened(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model that shares its weights and answers quickly: with such dense layers, and lean blocks.

    The same model where neither is possible, and where somebody listens with hooks.
    """
    now, made = marks(model), _made.get(model)
    if made is None or made.of != now:
        made = _made[model] = _Made(now, [vars(part) for part in model.modules()])
    if made.heard():
        return model
    if made.modes != (modes := made.training()):
        made.modes, made.shared = modes, _shared(model)
    return model if made.shared is None else made.shared


@dataclass
class _Made:
    """A copy of a model as it was, if it needs one, and what its parts hold.

    Attributes:
        of: marks of the model.
        modes: of its parts: a dropout of the copy must do what that of the model does.
    """

    of: int
    parts: list[dict[str, Any]]
    modes: list[bool] = field(default_factory=list)
    shared: PreTrainedModel | None = None

    def heard(self) -> bool:
        """Whether somebody listens with hooks."""
        return any(part["_forward_hooks"] or part["_forward_pre_hooks"] for part in self.parts)

    def training(self) -> list[bool]:
        """Which parts are in training now."""
        return [part["training"] for part in self.parts]


def _shared(model: PreTrainedModel) -> PreTrainedModel | None:
    dense = {path: layer for path, layer in linear_layers(model, head=True) if _worth_it(layer)}
    leans = way_of(model).lean and lean.fits(model)
    if not dense and not leans:
        return None
    shared = sharing.share(model)
    alike: dict[tuple[int, ...], list[Tensor]] = {}
    for path, layer in dense.items():
        weights = alike.setdefault(tuple(layer.weight.shape), [])
        weights.append(layer.weight)
        replace_module(shared, path, DenseLinear(layer.weight, layer.bias, weights))
    if leans:
        lean.lean(shared)
    return shared


def _worth_it(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether products can be told apart by a clock."""
    weight = layer.weight if type(layer) is nn.Linear else None
    return weight is not None and weight.dtype == torch.float32 and weight.is_cpu and weight.nbytes >= LEAST_BYTES
