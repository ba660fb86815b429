"""2:4 sparse layers: exact, nine sixteenths of 16 bits, and only for weights that are 2:4."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from workbench.core.errors import InvalidInput
from workbench.models.packed import SemiStructuredLinear, is_semi_structured, unpack_module


def pruned(out: int, columns: int, seed: int = 0) -> Tensor:
    """A random weight whose two smallest of every four are zero, now and then more of them."""
    draw = torch.Generator().manual_seed(seed)
    fours = torch.randn(out, columns // 4, 4, generator=draw)
    dropped = fours.abs().argsort(dim=-1)[..., :2]
    weight = fours.scatter(-1, dropped, 0.0).view(out, columns)
    return weight * (torch.rand(weight.shape, generator=draw) < 0.9)


@pytest.mark.parametrize("shape", [(96, 128), (50, 64), (1, 8), (33, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weight_comes_back_exactly(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = pruned(*shape).to(dtype)
    layer = SemiStructuredLinear.pack(weight, None)
    assert torch.equal(layer.dequantize(), weight.float())
    x = torch.randn(5, shape[1], dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, weight))


def test_products_take_the_bias_and_any_shape() -> None:
    weight, bias = pruned(96, 128), torch.randn(96)
    layer = SemiStructuredLinear.pack(weight, bias)
    for shape in ((128,), (2, 3, 128), (0, 128)):
        x = torch.ones(shape)
        assert torch.allclose(layer(x), F.linear(x, weight, bias), atol=1e-5)


def test_it_takes_nine_sixteenths_and_what_is_saved_rebuilds_it() -> None:
    weight = pruned(96, 128).bfloat16()
    layer = SemiStructuredLinear.pack(weight, torch.randn(96))
    saved = {name: tensor.clone() for name, tensor in layer.saved_tensors().items()}
    assert saved["weight"].nbytes + saved["positions"].nbytes == weight.nbytes * 9 // 16
    again = unpack_module("SemiStructuredLinear", layer.options, saved)
    x = torch.randn(5, 128)
    assert torch.equal(again(x), layer(x))
    assert torch.equal(again.dequantize(), weight.float())


def test_a_transposed_weight_is_packed_too() -> None:
    weight = pruned(64, 32)
    layer = SemiStructuredLinear.pack(weight.t().contiguous().t(), None)
    assert torch.equal(layer.dequantize(), weight)


def test_other_weights_are_refused() -> None:
    dense = torch.randn(8, 16)
    assert not is_semi_structured(dense)
    with pytest.raises(InvalidInput, match="prune it 2:4"):
        SemiStructuredLinear.pack(dense, None)
    almost = pruned(8, 16)
    almost[3, 4:7] = 1.0
    assert not is_semi_structured(almost)
    with pytest.raises(InvalidInput, match="prune it 2:4"):
        SemiStructuredLinear.pack(almost, None)
    assert not is_semi_structured(torch.zeros(8, 12))
    with pytest.raises(InvalidInput, match="multiple of 8"):
        SemiStructuredLinear.pack(torch.zeros(8, 12), None)
    assert is_semi_structured(pruned(8, 16))


def test_the_layout_of_a_gpu_is_held_and_saved_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the product, in the layout that torch would use on a GPU."""

    def to_sparse(weight: Tensor) -> Tensor:
        values, positions = sparse_semi_structured_from_dense_cutlass(weight)
        with pytest.warns(UserWarning, match="prototype") if not kind._PROTOTYPE_WARNING_SHOWN else nullcontext():
            return kind(weight.shape, values, positions, None, None, None)

    kind = SparseSemiStructuredTensorCUTLASS
    monkeypatch.setattr("workbench.models.packed.sparse.has_sparse_product", lambda device, dtype: True)
    monkeypatch.setattr("workbench.models.packed.sparse._to_sparse", to_sparse)
    weight = pruned(64, 128).half()
    layer = SemiStructuredLinear.pack(weight, torch.randn(64))
    assert layer.layout is not None
    assert sum(t.nbytes for name, t in layer.named_buffers() if name != "bias") == weight.nbytes * 9 // 16
    monkeypatch.undo()
    for held in (layer, deepcopy(layer)):
        assert torch.equal(held.dequantize(), weight.float())
        plain = SemiStructuredLinear.pack(weight, layer.bias).saved_tensors()
        assert {name: tensor.tolist() for name, tensor in held.saved_tensors().items()} == {
            name: tensor.tolist() for name, tensor in plain.items()
        }
