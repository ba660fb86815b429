"""Packed layers against hand-made numbers, plain float arithmetic and bitsandbytes itself."""

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import InvalidInput, NotAvailable
from workbench.models import packed
from workbench.models.packed import fp8, int8

KINDS = {
    "int8": (packed.Int8Linear, {}),
    "int8 dynamic": (packed.Int8DynamicLinear, {}),
    "llm.int8": (packed.LLMInt8Linear, {"threshold": 6.0}),
    "nf4": (packed.Bits4Linear, {"quant_type": "nf4", "block_size": 64}),
    "fp4": (packed.Bits4Linear, {"quant_type": "fp4", "block_size": 64}),
    "fp8": (packed.FP8Linear, {}),
}
# How far a product may be from that of the dequantized weight, as a share of its own size: bfloat16 or half kernels
# round at 2^-8 and 2^-11, int8 activations at 1/254 of the largest.
CLOSE = {"int8": 0.01, "int8 dynamic": 0.02, "llm.int8": 0.02, "nf4": 0.01, "fp4": 0.01, "fp8": 0.01}


def random_weight(out: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, wanted: Tensor) -> float:
    return float((ours.float() - wanted).norm() / wanted.norm())


def pack(kind: str, weight: Tensor, bias: Tensor | None = None) -> packed.PackedLinear:
    made, options = KINDS[kind]
    return made.pack(weight, bias, **options)


# ---- every kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 16, 17, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_dequantized_weight(kind: str, rows: int, bias: bool) -> None:
    added = random_weight(1, 96, 3)[0] if bias else None
    layer = pack(kind, random_weight(96, 128), added)
    x = random_weight(rows, 128, 1)
    assert error(layer(x), F.linear(x, layer.dequantize(), added)) < CLOSE[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("out", "columns"), [(96, 50), (50, 128), (33, 1), (1, 64), (7, 13)])
def test_odd_shapes_work_or_are_refused_plainly(kind: str, out: int, columns: int) -> None:
    try:
        layer = pack(kind, random_weight(out, columns).abs())
    except InvalidInput as refused:
        message = str(refused)
    else:
        message = ""
    if message:
        assert str(columns) in message or str(out) in message
        return
    assert layer.dequantize().shape == (out, columns)
    for rows in (1, 3, 100):
        x = random_weight(rows, columns, 1).abs()  # no sum cancels to nearly nothing
        assert error(layer(x), F.linear(x, layer.dequantize())) < CLOSE[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes_are_those_of_the_input(kind: str, dtype: torch.dtype) -> None:
    layer = pack(kind, random_weight(96, 128).to(dtype))
    for shape in ((128,), (2, 128), (2, 3, 128), (0, 128)):
        x = torch.ones(shape, dtype=dtype)
        assert (layer(x).shape, layer(x).dtype) == ((*shape[:-1], 96), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_packing_reads_and_never_writes_the_weight(kind: str) -> None:
    weight = random_weight(96, 128)
    before = weight.clone()
    layer = pack(kind, weight)
    layer(random_weight(2, 128, 1))
    layer.dequantize()
    assert torch.equal(weight, before)
    assert weight.data_ptr() not in {buffer.data_ptr() for buffer in layer.buffers()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zeros_stays_zero(kind: str) -> None:
    layer = pack(kind, torch.zeros(96, 128))
    assert torch.equal(layer.dequantize(), torch.zeros(96, 128))
    assert torch.equal(layer(torch.ones(2, 128)), torch.zeros(2, 96))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_rebuilds_the_layer(kind: str) -> None:
    layer = pack(kind, random_weight(96, 128), random_weight(1, 96, 3)[0])
    tensors = {name: tensor.clone() for name, tensor in layer.saved_tensors().items()}
    again = packed.unpack_module(type(layer).__name__, layer.options, tensors)
    x = random_weight(5, 128, 1)
    assert torch.equal(again(x), layer(x))
    assert torch.equal(again.dequantize(), layer.dequantize())
    assert {n: t.dtype for n, t in again.saved_tensors().items()} == {n: t.dtype for n, t in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_reading_change_nothing(kind: str) -> None:
    layer = pack(kind, random_weight(96, 128))
    x = random_weight(5, 128, 1)
    before = layer(x)
    for _ in range(2):
        layer.saved_tensors()
        layer.dequantize()
        assert torch.equal(layer(x), before)


# ---- int8


def test_int8_by_hand() -> None:
    # The scales, 127/127 and 254/127, are exact in bfloat16, so each weight is its own nearest step.
    layer = packed.Int8Linear.pack(torch.tensor([[127.0, -1.4, 0.6], [-254.0, 3.0, 0.9]]), None)
    assert layer.scale.tolist() == [1.0, 2.0]
    assert layer.weight.tolist() == [[127, -1, 1], [-127, 2, 0]]  # 3 / 2 = 1.5 rounds to the even 2
    assert layer.dequantize().tolist() == [[127.0, -1.0, 1.0], [-254.0, 4.0, 0.0]]
    assert layer(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[128.0, -246.0]]


def test_int8_is_off_by_half_a_step_at_most() -> None:
    weight = random_weight(200, 333)
    layer = packed.Int8Linear.pack(weight, None)
    assert ((weight - layer.dequantize()).abs() <= layer.scale[:, None] / 2 * (1 + 1e-5)).all()
    assert layer.weight.abs().max() <= 127
    assert torch.equal(layer.scale, layer.scale.bfloat16().float())
    assert (layer.scale * 127 >= weight.abs().amax(dim=1)).all()
    assert (layer.scale * 127 <= weight.abs().amax(dim=1) * 1.01).all()


def test_int8_dynamic_is_a_plain_rounding_of_rows() -> None:
    layer = packed.Int8DynamicLinear.pack(random_weight(96, 128), None)
    for rows in (1, 5, 100):
        x = random_weight(rows, 128, 1) * torch.logspace(-3, 3, rows)[:, None]
        scale = x.abs().amax(dim=1, keepdim=True) / 127
        rounded = (x / scale).round()
        assert rounded.abs().max() <= 127
        wanted = (rounded @ layer.weight.float().T) * scale * layer.scale  # integers below 2^24: exact in float32
        # Where integer products overflow they are taken in floating point, and few rows come back in bfloat16.
        assert torch.allclose(layer(x), wanted, rtol=1e-5 if int8.exact_int8_products() else 2**-7, atol=0)


def test_int8_dynamic_needs_no_integer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = packed.Int8DynamicLinear.pack(random_weight(96, 128), None)
    most = torch.full((1, 128), 3.0)  # sums that overflow 16 bits on CPUs which add in them
    extreme = packed.Int8DynamicLinear.pack(torch.ones(96, 128), None)
    monkeypatch.setattr(int8, "exact_int8_products", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    for rows in (1, 16, 17, 100):
        x = random_weight(rows, 128, 1)
        assert error(layer(x), F.linear(x, layer.dequantize())) < CLOSE["int8 dynamic"]
        assert error(extreme(most.expand(rows, -1)), torch.full((rows, 96), 384.0)) < CLOSE["int8 dynamic"]


def test_int8_activations_in_two_parts_are_good_to_sixteen_bits() -> None:
    if not int8.exact_int8_products():
        pytest.skip("never asked for here: this CPU adds products of int8 numbers in 16 bits")
    weight = packed.Int8Linear.pack(random_weight(96, 128), None).weight
    for rows in (1, 5, 100):
        x = random_weight(rows, 128, 1) * torch.logspace(-3, 3, rows)[:, None]
        wanted = x.double() @ weight.double().T
        off = (int8.split_product(x, weight) - wanted).abs()
        assert (off <= x.abs().amax(dim=1, keepdim=True) / 127 / 254 * weight.double().abs().sum(dim=1)).all()
        assert error(int8.split_product(x, weight), wanted) < 1e-4
    assert torch.equal(int8.split_product(torch.zeros(2, 128), weight), torch.zeros(2, 96))


@pytest.mark.parametrize("exact", [True, False])
def test_an_output_head_is_multiplied_more_exactly(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    if exact and not int8.exact_int8_products():
        pytest.skip("this CPU adds products of int8 numbers in 16 bits")
    monkeypatch.setattr(int8, "exact_int8_products", lambda: exact)
    head = packed.Int8Linear.pack(random_weight(2048, 64), None)
    for rows in (1, 20, 100):
        x = random_weight(rows, 64, 1)
        off = error(head(x), F.linear(x, head.dequantize()))
        assert off < (1e-4 if exact else CLOSE["int8"])  # without, it may be exact as well: that is the kernel's


def test_int8_embedding_reads_rows() -> None:
    head = packed.Int8Linear.pack(random_weight(40, 16), None)
    embedding = packed.Int8Embedding(
        {"dtype": "float32", "multiplier": 4.0}, {"weight": head.weight, "scale": head.scale}
    )
    ids = torch.tensor([[3, 39], [0, 3]])
    assert torch.equal(embedding(ids), head.dequantize()[ids] * 4.0)
    assert (embedding.in_features, embedding.out_features) == (16, 40)


# ---- float8


def test_float8_by_hand() -> None:
    # The largest of each row becomes 448, so the scales are 1 and 2; e4m3 keeps 3 bits: 17 and 19 fall on 16 and 20.
    layer = packed.FP8Linear.pack(torch.tensor([[448.0, 17.0, -19.0], [-896.0, 3.0, 0.0]]), None)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert layer.scale.tolist() == [1.0, 2.0]
    assert layer.dequantize().tolist() == [[448.0, 16.0, -20.0], [-896.0, 3.0, 0.0]]


def test_every_float8_number_is_widened_exactly() -> None:
    numbers = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    numbers = numbers[~numbers.float().isnan()]
    assert len(numbers) == 254
    assert torch.equal(fp8.to_bfloat16(numbers).float(), numbers.float())


def test_float8_is_off_by_a_sixteenth_of_each_weight() -> None:
    weight = random_weight(200, 333)
    off = (packed.FP8Linear.pack(weight, None).dequantize() - weight).abs()
    fine = weight.abs() > weight.abs().amax(dim=1, keepdim=True) / 448 / 64  # below that, steps are even
    assert (off <= weight.abs() / 16 * (1 + 1e-5))[fine].all()


# ---- bitsandbytes


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [32, 64, 128, 256])
@pytest.mark.parametrize("shape", [(96, 256), (50, 256), (96, 50)])
def test_four_bits_are_those_of_bitsandbytes(quant_type: str, block_size: int, shape: tuple[int, int]) -> None:
    weight = random_weight(*shape)
    codes, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)
    wanted = bitsandbytes.functional.dequantize_4bit(codes, state)
    layer = packed.Bits4Linear.pack(weight, None, quant_type=quant_type, block_size=block_size)
    saved = layer.saved_tensors()
    assert torch.equal(saved["weight"].flatten(), codes.flatten())
    assert error(saved["scale"], state.absmax) < 0.004  # the fast CPU layout keeps 8 bits of a scale
    assert error(layer.dequantize(), wanted) < 0.004
    assert 0.05 < error(layer.dequantize(), weight) < 0.2


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_llm_int8_is_that_of_bitsandbytes(threshold: float) -> None:
    weight = random_weight(96, 128)
    reference = bitsandbytes.nn.Linear8bitLt(128, 96, bias=False, has_fp16_weights=False, threshold=threshold)
    reference.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    reference.to("cpu").eval()  # in training it multiplies in floating point
    x = random_weight(5, 128, 1).half()
    x[:, 7] = 20.0  # an outlier column
    with torch.no_grad():
        wanted = reference(x).float()
    layer = packed.LLMInt8Linear.pack(weight, None, threshold=threshold)
    assert error(layer(x), wanted) < 0.002


def test_outliers_are_multiplied_in_sixteen_bits() -> None:
    weight, x = random_weight(96, 128), random_weight(5, 128, 1)
    x[:, 7] = 60.0
    wanted = F.linear(x, weight)
    kept, rounded = (packed.LLMInt8Linear.pack(weight, None, threshold=t) for t in (6.0, 0.0))
    assert error(kept(x), wanted) < error(rounded(x), wanted) / 2


# ---- finding layers


def test_dense_weight_is_out_by_in() -> None:
    turned = Conv1D(5, 3)  # transformers' transposed linear layer: 3 in, 5 out
    assert packed.dense_weight(turned).shape == (5, 3)
    x = torch.randn(2, 3)
    assert torch.allclose(F.linear(x, packed.dense_weight(turned), turned.bias), turned(x), atol=1e-6)
    assert packed.dense_weight(nn.Linear(3, 5)).shape == (5, 3)


def test_linear_layers_are_all_but_the_head(load_tiny) -> None:
    for name, count in {"llama": 14, "gpt2": 8, "qwen3": 14, "gpt_neox": 8, "opt": 12, "gemma": 14}.items():
        model = load_tiny(name).model
        assert len(list(packed.linear_layers(model))) == count
        with_head = dict(packed.linear_layers(model, head=True))
        assert len(with_head) == count + 1
        assert model.get_output_embeddings() in with_head.values()


def test_a_kernel_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError("Could not run 'bitsandbytes::quantize_4bit' with arguments from the 'CPU' backend.")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", missing)
    with pytest.raises(NotAvailable, match="bitsandbytes has no kernel here"):
        packed.Bits4Linear.pack(torch.randn(32, 64), None, quant_type="nf4", block_size=64)
