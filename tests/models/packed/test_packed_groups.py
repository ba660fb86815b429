"""Integers in groups: codes come back, bytes are what is claimed, products are those of plain arithmetic."""

from itertools import product

import pytest
import torch
from torch import Tensor

from workbench.core.errors import InvalidInput
from workbench.models.packed import GroupLinear, int4, pack_bits, stored_scale, stored_zero, unpack_bits, unpack_module

ZEROS = ("middle", "integer", "real")
SHAPES = [(96, 128), (128, 256), (64, 1000), (50, 50), (33, 77), (7, 13)]

every_width = pytest.mark.parametrize("bits", range(2, 9))
every_group = pytest.mark.parametrize("group_size", [0, 32, 64, 128, 256])
every_zero = pytest.mark.parametrize("zeros", ZEROS)


class Parts:
    """Random codes with their scales and zero points, and the weight they stand for in float64."""

    def __init__(self, bits: int, group_size: int, zeros: str, shape: tuple[int, int], seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        size = group_size or shape[1]
        grid = (shape[0], -(-shape[1] // size))
        self.codes = torch.randint(2**bits, shape, generator=draw, dtype=torch.uint8)
        self.scale = stored_scale(torch.rand(grid, generator=draw) + 0.01)
        self.zero: Tensor | None = None
        if zeros == "integer":
            self.zero = torch.randint(2**bits, grid, generator=draw).float()
        elif zeros == "real":
            self.zero = stored_zero(torch.rand(grid, generator=draw) * 2**bits)
        shown = torch.full(grid, 2.0 ** (bits - 1)) if self.zero is None else self.zero
        scale, self.shown_zero = self.scale.double().repeat_interleave(size, dim=1)[:, : shape[1]], shown
        self.weight = (self.codes.double() - shown.double().repeat_interleave(size, dim=1)[:, : shape[1]]) * scale
        self.layer = GroupLinear.from_codes(self.codes, self.scale, self.zero, None, bits, group_size)


@every_width
@every_group
def test_codes_scales_and_zeros_come_back(bits: int, group_size: int) -> None:
    for zeros, shape in product(ZEROS, SHAPES):
        made = Parts(bits, group_size, zeros, shape)
        assert torch.equal(made.layer.codes(), made.codes)
        assert torch.equal(made.layer.scale, made.scale)
        assert torch.equal(made.layer.zero, made.shown_zero)
        assert torch.allclose(made.layer.dequantize().double(), made.weight, rtol=1e-6, atol=1e-7)


@every_width
@every_group
def test_products_are_those_of_the_weight(bits: int, group_size: int) -> None:
    for zeros, shape, rows in product(ZEROS, SHAPES, (1, 5, 100)):
        made = Parts(bits, group_size, zeros, shape)
        x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
        wanted = x @ made.weight.T
        # Every term is rounded to the 8 bits of bfloat16, so the error is a share of their sizes, not of their sum.
        size = (x.square() @ made.weight.square().T).sqrt()
        assert ((made.layer(x.float()) - wanted).abs() / size).square().mean().sqrt() < 0.01


@every_width
@every_zero
@pytest.mark.parametrize(("shape", "group_size"), [((128, 256), 64), ((33, 77), 32), ((128, 256), 0)])
def test_what_is_saved_has_the_claimed_size_and_rebuilds_the_layer(
    bits: int, zeros: str, shape: tuple[int, int], group_size: int
) -> None:
    made = Parts(bits, group_size, zeros, shape)
    saved = {name: tensor.clone() for name, tensor in made.layer.saved_tensors().items()}
    groups = made.scale.numel()
    assert saved["weight"].nbytes == shape[0] * -(-shape[1] // 8) * bits
    assert saved["scales"].nbytes == 2 * groups
    assert saved.get("zeros", torch.empty(0)).nbytes == {"middle": 0, "integer": 1, "real": 2}[zeros] * groups
    assert set(saved) <= {"weight", "scales", "zeros"}
    held = sum(buffer.nbytes for buffer in made.layer.buffers())
    assert held <= sum(tensor.nbytes for tensor in saved.values()) + 2 * groups * (1 if group_size else 4)
    again = unpack_module("GroupLinear", made.layer.options, saved)
    x = torch.randn(5, shape[1])
    assert torch.equal(again(x), made.layer(x))
    assert torch.equal(again.dequantize(), made.layer.dequantize())
    assert {n: t.dtype for n, t in again.saved_tensors().items()} == {n: t.dtype for n, t in saved.items()}


@pytest.mark.parametrize(("columns", "group_size"), [(256, 64), (576, 128), (96, 64), (288, 256), (96, 0)])
def test_the_saved_layout_is_the_same_without_a_kernel(
    columns: int, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Parts(4, group_size, "integer", (128, columns))
    monkeypatch.setattr("workbench.models.packed.groups.int4_kernel", lambda device: None)
    plain = Parts(4, group_size, "integer", (128, columns))
    assert plain.layer.kernel is None
    for name, tensor in made.layer.saved_tensors().items():
        assert torch.equal(tensor, plain.layer.saved_tensors()[name])
    for rows in (1, 100):
        x = torch.randn(rows, columns)
        assert float((made.layer(x) - plain.layer(x)).norm() / plain.layer(x).norm()) < 0.01


def test_this_cpu_multiplies_straight_from_four_bits() -> None:
    kernel = int4.int4_kernel(torch.device("cpu"))
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        assert kernel is None
        return
    assert kernel is not None
    codes = torch.randint(16, (192, 96), dtype=torch.uint8)
    arranged = kernel.arrange(codes)
    assert arranged.nbytes == codes.nbytes // 2
    assert torch.equal(kernel.codes(arranged, 96), codes)
    assert Parts(4, 32, "middle", (192, 96)).layer.kernel is kernel
    assert Parts(4, 0, "middle", (192, 96)).layer.kernel is kernel
    assert Parts(4, 64, "middle", (192, 96)).layer.kernel is kernel, "groups are cut where the last is shorter"
    assert Parts(4, 64, "middle", (192, 90)).layer.kernel is None, "columns left over"
    assert Parts(4, 32, "middle", (100, 96)).layer.kernel is None, "rows left over"


def test_a_kernel_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = int4.int4_kernel.__wrapped__
    for broken in ("arrange", "multiply", "codes"):
        with monkeypatch.context() as patch:
            patch.setattr(int4.CpuInt4, broken, lambda *args: torch.zeros(128, 64))
            assert plain(torch.device("cpu")) is None


@every_width
def test_bits_are_packed_without_gaps(bits: int) -> None:
    codes = torch.randint(2**bits, (5, 40), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (5, 5 * bits)
    assert torch.equal(unpack_bits(packed, bits), codes)
    assert torch.equal(unpack_bits(~packed, bits), codes ^ (2**bits - 1)), "every bit belongs to a code"


def test_by_hand() -> None:
    layer = GroupLinear.from_codes(
        torch.tensor([[0, 3, 1, 2], [3, 3, 0, 1]], dtype=torch.uint8),
        scale=torch.tensor([[0.5], [2.0]]), zero=torch.tensor([[1.0], [3.0]]),
        bias=torch.tensor([10.0, 20.0]), bits=2, group_size=32,
    )  # fmt: skip
    assert layer.dequantize().tolist() == [[-0.5, 1.0, 0.0, 0.5], [0.0, 0.0, -6.0, -4.0]]
    assert layer(torch.tensor([[1.0, 2.0, 4.0, 8.0]])).tolist() == [[15.5, -36.0]]
    assert layer.saved_tensors()["bias"].tolist() == [10.0, 20.0]
    assert layer.saved_tensors()["weight"].shape == (2, 2)


def test_scales_are_kept_as_stored_scale_says() -> None:
    scale = torch.rand(40, 3) + 0.01
    layer = GroupLinear.from_codes(torch.zeros(40, 96, dtype=torch.uint8), scale, None, None, 3, 32)
    assert torch.equal(layer.scale, stored_scale(scale))
    assert ((stored_scale(scale) - scale).abs() <= scale / 256).all()
    assert (1 / stored_scale(torch.zeros(1))).isfinite().all()


@pytest.mark.parametrize(
    ("bits", "group_size", "grid"), [(1, 32, (8, 2)), (9, 32, (8, 2)), (4, 33, (8, 2)), (4, 32, (8, 1)), (4, 0, (8, 2))]
)
def test_what_does_not_fit_is_refused_in_a_sentence(bits: int, group_size: int, grid: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match=r"\.$"):
        GroupLinear.from_codes(torch.zeros(8, 64, dtype=torch.uint8), torch.ones(grid), None, None, bits, group_size)
    with pytest.raises(InvalidInput, match="too narrow"):
        GroupLinear.from_codes(torch.zeros(8, 1, dtype=torch.uint8), torch.ones(8, 1), None, None, 4, 0)


def test_shapes_and_dtypes_are_those_of_the_input() -> None:
    for bits in (3, 4):
        layer = Parts(bits, 32, "integer", (96, 128)).layer
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for shape in ((128,), (2, 3, 128), (0, 128)):
                x = torch.ones(shape, dtype=dtype)
                assert (layer(x).shape, layer(x).dtype) == ((*shape[:-1], 96), dtype)
            assert layer(torch.ones(128, 2, dtype=dtype).t()).shape == (2, 96)
