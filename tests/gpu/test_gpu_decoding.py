"""What a token asks of a GPU, and that each packed layer finds its kernel: copies and waits are few, and counted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from workbench.models.packed import (
    FP8Linear,
    GroupLinear,
    Int8DynamicLinear,
    Int8Linear,
    PackedLinear,
    SemiStructuredLinear,
    fp8,
    has_sparse_product,
    int4,
    sparse,
)
from workbench.steps import output, prompt, prune, quantize

pytestmark = pytest.mark.usefixtures("gpu")
CUDA = torch.device("cuda", 0)
TOKENS = 12
LAYERS = 15  # of a tiny Llama, its head among them


def forget() -> None:
    """What was found out about one card does not hold for another."""
    for found in (int4.int4_kernel, sparse.has_sparse_product, fp8.multiplies_float8):
        found.cache_clear()


@pytest.fixture
def card(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes the GPU one of another compute capability."""

    def become(*capability: int) -> None:
        monkeypatch.setattr(gpu, "capability", capability)
        forget()

    if gpu is None:
        pytest.skip("A real GPU is what it is, and does not count.")
    yield become
    monkeypatch.undo()
    forget()


def a_token(gpu: Any, variant: wb.Variant, **decoding: Any) -> tuple[float, float, float]:
    """Kernels, waits and copies for one more token of an answer."""
    seen, most = [], variant.generate("What is a lobster?", max_new_tokens=TOKENS, **decoding)
    assert len(most.token_ids) == TOKENS, "it goes on"
    for count in (2, TOKENS):
        with gpu.watched() as found:
            variant.generate("What is a lobster?", max_new_tokens=count, **decoding)
        seen.append([sum(each.values()) for each in (found.kernels, found.waits, found.copies)])
    return tuple((many - few) / (TOKENS - 2) for few, many in zip(*seen, strict=True))


@pytest.mark.parametrize(
    ("step", "capability", "more"),
    [
        (quantize.NF4(), (8, 0), 0),
        (quantize.RTN(), (8, 0), 0),
        (quantize.LLMInt8(), (8, 0), 2),
        (quantize.Int8(), (8, 0), 2),
        (quantize.FP8(), (8, 0), 2),
        (quantize.FP8(), (9, 0), 5),
        (quantize.RTN(bits=8), (8, 0), 3),
        (quantize.RTN(bits=3), (8, 0), 8),
        (quantize.RTN(), (7, 5), 6),
        (quantize.Int8Dynamic(), (8, 0), 8),
        (prune.Magnitude(pattern="2:4"), (8, 0), 2),
    ],
    ids=repr,
)
def test_a_token_starts_few_kernels_and_waits_once(
    step: wb.Step, capability: tuple[int, int], more: int, gpu: Any, card: Any, folders: dict[str, Path]
) -> None:
    """Some kernels a layer beside the dense ones: scales and codes, each taken up once."""
    card(*capability)
    base = wb.load(folders["llama"], device="cuda", dtype="bfloat16")
    dense, *rest = a_token(gpu, base)
    kernels, waits, copies = a_token(gpu, base.apply(step))
    assert rest == [1, 0]
    assert (waits, copies) == (1, 0)
    assert kernels - dense <= more * LAYERS + 3


@pytest.mark.parametrize("decoding", [{}, {"temperature": 1.0, "top_p": 0.9}], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "step",
    [quantize.KVCache(bits=4), output.Stop(floor=1e-9), prompt.Constrain(form="pattern", rule="[a-z]{30}")],
    ids=lambda step: step.label,
)
def test_whatever_follows_a_token_waits_once(
    step: wb.Step, decoding: dict[str, float], gpu: Any, card: Any, folders: dict[str, Path]
) -> None:
    card(8, 0)
    _, waits, copies = a_token(gpu, wb.load(folders["llama"], device="cuda").apply(step), **decoding)
    assert waits == 1
    assert copies <= bool(decoding) + isinstance(step, prompt.Constrain), "numbers drawn, and what may come next"


def rows_of(count: int, columns: int) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count)).to(CUDA, torch.bfloat16)


def grouped(bits: int) -> Callable[[Tensor, Tensor], PackedLinear]:
    def pack(weight: Tensor, bias: Tensor) -> PackedLinear:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.bias = torch.nn.Parameter(bias, requires_grad=False)
        step = quantize.RTN(bits=bits, group_size=32)
        return step.pack(layer, step.quantize(weight.float(), None))

    return pack


def two_of_four(weight: Tensor, bias: Tensor) -> PackedLinear:
    keep = torch.tensor([1, 0, 1, 0], device=CUDA, dtype=weight.dtype).repeat(weight.shape[1] // 4)
    return SemiStructuredLinear.pack(weight * keep, bias)


KINDS: dict[str, Callable[[Tensor, Tensor], PackedLinear]] = {
    "int8": Int8Linear.pack,
    "int8 dynamic": Int8DynamicLinear.pack,
    "float8": FP8Linear.pack,
    "2:4": two_of_four,
    **{f"{bits} bits": grouped(bits) for bits in (2, 3, 4, 8)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 128), (72, 96), (50, 64), (13, 40)], ids=str)
def test_products_are_those_of_the_unpacked_weight(kind: str, shape: tuple[int, int], gpu: Any) -> None:
    """For one row and for many, sizes that the kernels take and others; and the way back."""
    if gpu is not None:
        gpu.capability = (9, 0)
        forget()
    try:
        draw = torch.Generator().manual_seed(0)
        weight, bias = (torch.randn(each, generator=draw).to(CUDA, torch.bfloat16) for each in (shape, shape[:1]))
        layer = KINDS[kind](weight, bias)
        dense = layer.dequantize()
        for count in (1, 5, 17, 130):
            rows = rows_of(count, shape[1]).requires_grad_()
            found, wanted = layer(rows), rows.detach().float() @ dense.t() + bias.float()
            assert found.dtype == torch.bfloat16
            assert float((found.detach().float() - wanted).norm() / wanted.norm()) < 0.04
            found.float().sum().backward()
            assert torch.allclose(rows.grad.float(), dense.sum(dim=0).expand(count, -1), rtol=0.02, atol=0.2)
        again = type(layer)(layer.options, {name: each.cpu() for name, each in layer.saved_tensors().items()})
        assert torch.equal(again.dequantize(), dense.cpu()), "the same on a machine without a GPU"
    finally:
        if gpu is not None:
            gpu.capability = (8, 0)
            forget()


def test_kernels_are_found_where_a_card_has_them(card: Any) -> None:
    found = {}
    for capability in ((7, 5), (8, 0), (9, 0)):
        card(*capability)
        packed = KINDS["4 bits"](torch.ones(64, 128, device=CUDA), torch.ones(64, device=CUDA))
        assert isinstance(packed, GroupLinear)
        found[capability] = (
            packed.kernel is not None,
            has_sparse_product(CUDA, torch.bfloat16),
            fp8.multiplies_float8(CUDA),
        )
    assert found == {(7, 5): (False, False, False), (8, 0): (True, True, False), (9, 0): (True, True, True)}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("CUDA error: x")]
)
def test_a_device_that_fails_is_no_missing_kernel(error: Exception, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Tensor:
        raise error

    card(9, 0)
    monkeypatch.setattr(torch, "_scaled_mm", fails)
    monkeypatch.setattr(torch, "_weight_int4pack_mm", fails)
    monkeypatch.setattr(torch.nn.functional, "linear", fails)
    for trial in (
        lambda: fp8.multiplies_float8(CUDA),
        lambda: int4.int4_kernel(CUDA),
        lambda: has_sparse_product(CUDA, torch.bfloat16),
    ):
        with pytest.raises(type(error)):
            trial()


def test_many_rows_are_multiplied_by_four_bits_unpacked_once(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card(8, 0)
    codes = torch.randint(16, (64, 256), dtype=torch.uint8)
    layer = GroupLinear.from_codes(codes.to(CUDA), torch.full((64, 4), 0.5, device=CUDA), None, None, 4, 64)
    weight = (codes.float() - 8) * 0.5
    few, many = rows_of(5, 256), rows_of(300, 256)
    assert torch.allclose(layer(few).float().cpu(), few.float().cpu() @ weight.t(), rtol=0.02, atol=1.0)
    monkeypatch.setattr(torch, "_weight_int4pack_mm", None)  # which would read the codes once more for every 16 rows
    assert torch.allclose(layer(many).float().cpu(), many.float().cpu() @ weight.t(), rtol=0.02, atol=1.0)
