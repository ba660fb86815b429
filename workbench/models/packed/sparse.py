"""Two kept weights of every four: values and positions (2:4 sparsity)."""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.device import device_failed
from workbench.core.errors import InvalidInput
from workbench.models.packed.base import PackedLinear
from workbench.models.packed.products import Product


class SemiStructuredLinear(PackedLinear):
    """A weight with at most two nonzero entries in every four columns, exact: two values and their 2-bit positions.

    A CUDA GPU of compute capability 8.0 or above multiplies it in half or bfloat16 on its sparse tensor cores.
    Everywhere else it is unpacked for every product: smaller, but not faster.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, https://arxiv.org/abs/2104.08378.
    """

    weight: Tensor
    bits = 9  # of a 16-bit weight: half of it and half a position

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(options, tensors)
        self.layout: tuple[type[Any], Any] | None = None
        if _fits_kernel(self.weight) and has_sparse_product(self.weight.device, self.weight.dtype):
            sparse = _to_sparse(self._dense())
            names, description = sparse.__tensor_flatten__()
            self.layout = (type(sparse), description)
            del self._buffers["positions"]
            self.weight = sparse.packed
            for name in names:
                if name != "packed":
                    self.register_buffer(name, getattr(sparse, name))

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        """Two values of every four columns ``(out, in / 2)`` in the weight's own type, positions ``(out, in / 8)``.

        Raises:
            InvalidInput: some four columns hold more than two nonzero entries, or the columns are no multiple of 8.
        """
        out, columns = weight.shape
        if columns % 8:
            raise InvalidInput(f"A weight of {columns} columns cannot be packed 2:4: they must be a multiple of 8.")
        fours = weight.detach().reshape(out, -1, 4)
        if int((fours != 0).sum(dim=-1).max()) > 2:
            raise InvalidInput("The weight has more than two nonzero entries in some four columns: prune it 2:4 first.")
        kept = (fours == 0).int().argsort(dim=-1, stable=True)[..., :2].sort(dim=-1).values
        values = fours.gather(-1, kept).view(out, columns // 2)
        pair = (kept[..., 0] | kept[..., 1] << 2).view(out, -1, 2)
        return {"weight": values, "positions": (pair[..., 0] | pair[..., 1] << 4).to(torch.uint8)}

    def saved_tensors(self) -> dict[str, Tensor]:
        if self.layout is None:
            return super().saved_tensors()
        bias = {} if self.bias is None else {"bias": self.bias}
        return self.pack_weight(self._sparse().to_dense()) | bias

    def dequantize(self) -> Tensor:
        return (self._dense() if self.layout is None else self._sparse().to_dense()).float()

    def products(self, rows: int) -> Mapping[str, Product]:
        """The one there is."""
        return {"sparse tensor cores" if self.layout is not None else "unpacked once a batch": type(self).multiply}

    def multiply(self, rows: Tensor) -> Tensor:
        if self.layout is not None:
            return F.linear(rows.to(self.weight.dtype), self._sparse())
        return F.linear(rows, self._dense().to(rows.dtype))

    def _dense(self) -> Tensor:
        """The weight ``(out, in)`` in its own type, from values and positions."""
        packed = self.get_buffer("positions")
        fields = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
        kept = fields.view(self.out_features, -1, 2).long()
        fours = self.weight.new_zeros(self.out_features, self.in_features // 4, 4)
        fours.scatter_(-1, kept, self.weight.view(self.out_features, -1, 2))
        return fours.view(self.out_features, self.in_features)

    def _sparse(self) -> Any:
        assert self.layout is not None
        kind, description = self.layout
        inner = {name: buffer for name, buffer in self._buffers.items() if name != "bias"}
        packed = {"packed": inner.pop("weight"), **inner}
        return kind.__tensor_unflatten__(packed, description, torch.Size(self.options["shape"]), None)


def is_semi_structured(weight: Tensor) -> bool:
    """Whether a weight ``(out, in)`` has at most two nonzero entries in every four columns and can be packed."""
    return weight.shape[1] % 8 == 0 and int((weight.reshape(weight.shape[0], -1, 4) != 0).sum(dim=-1).max()) <= 2


@cache
def has_sparse_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GPU multiplies 2:4 sparse weights of a type, tried once on a small one."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    weight = torch.tensor([1, 0, 0, 2], device=device, dtype=dtype).tile(64, 16)
    rows = torch.eye(64, device=device, dtype=dtype)
    try:
        return torch.equal(F.linear(rows, _to_sparse(weight)), weight.t())
    except RuntimeError as error:  # neither cuSPARSELt nor CUTLASS in this build, or not for this GPU
        if device_failed(error):
            raise
        return False


def _to_sparse(weight: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the interface is a prototype
        return torch.sparse.to_sparse_semi_structured(weight.contiguous())


def _fits_kernel(values: Tensor) -> bool:
    """Whether the shape is one that both kernels of torch take: rows a multiple of 32, columns of 64."""
    return values.shape[0] % 32 == 0 and values.shape[1] % 32 == 0
