"""RTN, GPTQ, AWQ, HQQ and Budget against hand-computed cases and exact elimination."""

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM, BitNetConfig, DeepseekV3Config

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.layers.activations import LayerInput
from workbench.layers.scaling import divided_norm
from workbench.models.packed import GroupLinear
from workbench.steps import quantize
from workbench.steps.quantize.awq import scaled_input, search_clip, search_scale
from workbench.steps.quantize.budget import WIDTHS, Option, spend
from workbench.steps.quantize.gptq import gptq
from workbench.steps.quantize.hqq import POWER, fit_zero
from workbench.steps.quantize.rounding import Grid, dequantize, in_groups, minmax_grid, round_to

IDS = torch.arange(3, 60)[None]
every_model = pytest.mark.parametrize("architecture", ARCHITECTURES)
TINY = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
METHODS = [quantize.RTN, quantize.GPTQ, quantize.AWQ, quantize.HQQ]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda step: step.__name__)


def divergence(base: wb.Variant, other: wb.Variant) -> float:
    with torch.no_grad():
        ours, theirs = (each.model(IDS).logits.float().log_softmax(dim=-1) for each in (base, other))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def inputs_of(x: torch.Tensor) -> LayerInput:
    return LayerInput(len(x), x.square().mean(0).sqrt(), x.abs().mean(0), x.abs().amax(0), x.t() @ x / len(x), None)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, x: torch.Tensor) -> float:
    return float(((rounded - weight) @ x.t()).square().sum())


def test_rounding_by_hand() -> None:
    """Two bits from -1 to 2: steps of 1, zero at code 1."""
    weight = torch.tensor([[-1.0, 0.4, 0.6, 2.0]])
    grid = minmax_grid(weight, bits=2, group_size=4, symmetric=False)
    assert grid.scale.tolist() == [[1.0]]
    assert grid.zero.tolist() == [[1.0]]
    found = round_to(weight, grid, 2, 4)
    assert found.codes.tolist() == [[0, 1, 2, 3]]
    assert dequantize(found, 4).tolist() == [[-1.0, 0.0, 1.0, 2.0]]


def test_the_symmetric_grid_by_hand() -> None:
    """Codes 0..15 around 8; the largest weight is 7.5 steps away from zero."""
    grid = minmax_grid(torch.tensor([[7.5, -3.0, 0.0, 1.0]]), bits=4, group_size=4, symmetric=True)
    assert grid.scale.tolist() == [[1.0]]
    assert grid.zero.tolist() == [[8.0]]


def test_zero_is_always_a_level() -> None:
    weight = torch.rand(3, 64) + 5
    grid = minmax_grid(weight, 4, 32, symmetric=False)
    codes = round_to(torch.zeros(3, 64), grid, 4, 32)
    assert torch.equal(dequantize(codes, 32), torch.zeros(3, 64))


@pytest.mark.parametrize("columns", [64, 70, 33])
def test_a_last_group_may_be_shorter(columns: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, columns)
    found = round_to(weight, minmax_grid(weight, 8, 32, False), 8, 32)
    assert found.codes.shape == weight.shape
    assert float((dequantize(found, 32) - weight).abs().max()) < 0.02
    assert in_groups(weight, 32).shape == (5, -(-columns // 32), 32)


def exact_gptq(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, bits: int, group: int) -> torch.Tensor:
    """Round columns from left to right; each time the rest of the row takes the optimal correction, by elimination."""
    weight, hessian = weight.double().clone(), hessian.double()
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.double)
    inverse = torch.linalg.inv(hessian)
    rounded = torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        scale, zero = grid.scale[:, column // group].double(), grid.zero[:, column // group].double()
        code = (weight[:, column] / scale + zero).round().clamp(0, 2**bits - 1)
        rounded[:, column] = (code - zero) * scale
        error = (weight[:, column] - rounded[:, column]) / inverse[column, column]
        weight -= torch.outer(error, inverse[column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column] = inverse[:, column] = 0
        inverse[column, column] = 1
    return rounded


def test_gptq_is_elimination_column_by_column() -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(600, 160) @ torch.randn(160, 160) / 10, torch.randn(4, 160)
    inputs = inputs_of(x)
    order = inputs.hessian.diagonal().argsort(descending=True, stable=True)
    # One group a row: with the columns in the order of their inputs, the exact method needs no more.
    found = gptq(weight, inputs.hessian, 4, 256, symmetric=False, act_order=True)
    sorted_hessian = inputs.hessian[order][:, order]
    expected = exact_gptq(weight[:, order], sorted_hessian, found.grid, 4, 256)
    same = torch.isclose(dequantize(found, 256)[:, order].double(), expected, atol=1e-4)
    assert float(same.double().mean()) > 0.99, "all but what rounding in the last bit sends to the next code"


@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_loses_less_than_rounding(act_order: bool) -> None:
    torch.manual_seed(4)
    x, weight = torch.randn(500, 96) @ torch.randn(96, 96) / 10, torch.randn(16, 96)
    hessian = inputs_of(x).hessian
    plain = dequantize(round_to(weight, minmax_grid(weight, 3, 32, False), 3, 32), 32)
    found = dequantize(gptq(weight, hessian, 3, 32, symmetric=False, act_order=act_order), 32)
    assert output_error(weight, found, x) < 0.6 * output_error(weight, plain, x)


def test_gptq_without_correlations_is_rounding() -> None:
    torch.manual_seed(5)
    weight = torch.randn(8, 64)
    for order in (True, False):
        found = gptq(weight, torch.eye(64), 4, 32, symmetric=False, act_order=order)
        assert torch.equal(found.codes, round_to(weight, minmax_grid(weight, 4, 32, False), 4, 32).codes)


def test_a_column_that_is_never_fed_rounds_to_zero() -> None:
    hessian = torch.eye(32)
    hessian[5, 5] = 0
    weight = torch.randn(3, 32)
    found = gptq(weight, hessian, 4, 32, symmetric=False, act_order=True)
    assert (dequantize(found, 32)[:, 5] == 0).all()
    assert not (weight[:, 5] == 0).any(), "the given weight is not written"


def test_awq_finds_a_better_scale_and_clip() -> None:
    torch.manual_seed(6)
    sizes = torch.ones(64)
    sizes[::16] = 20  # a few large channels, as language models have
    x, weight = torch.randn(500, 64) * sizes, torch.randn(16, 64)
    inputs, step = inputs_of(x), quantize.AWQ(bits=3)
    plain = dequantize(round_to(weight, minmax_grid(weight, 3, 64, False), 3, 64), 64)
    scale = search_scale([weight], inputs, step)
    scaled = dequantize(round_to(weight * scale, minmax_grid(weight * scale, 3, 64, False), 3, 64), 64) / scale
    assert output_error(weight, scaled, x) < 0.7 * output_error(weight, plain, x)
    shrink = search_clip(weight, inputs.hessian, step)
    clipped = dequantize(round_to(weight, minmax_grid(weight, 3, 64, False, shrink), 3, 64), 64)
    assert output_error(weight, clipped, x) <= output_error(weight, plain, x)
    changed = scaled_input(inputs, scale)
    assert torch.allclose(changed.hessian, inputs_of(x / scale).hessian, rtol=1e-4, atol=1e-5)


@every_model
def test_scaling_alone_changes_no_function(
    architecture: str, load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text, monkeypatch
) -> None:
    """With packing left out, AWQ must leave the function of every architecture as it was, to rounding."""
    base = load_tiny(architecture)
    monkeypatch.setattr(quantize.AWQ, "pack", lambda self, layer, found: layer)
    child = base.apply(quantize.AWQ(head=False, clip=False), tiny_text)
    with torch.no_grad():
        assert torch.allclose(child.model(IDS).logits, base.model(IDS).logits, atol=2e-3, rtol=1e-3)
    ours, theirs = dict(child.model.named_parameters()), dict(base.model.named_parameters())
    assert any(ours[name] is not theirs[name] for name in theirs), "nothing was scaled"


@pytest.mark.parametrize(
    "config",
    [
        DeepseekV3Config(
            **TINY, num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
            n_group=1, topk_group=1, n_shared_experts=1, first_k_dense_replace=0, kv_lora_rank=16, q_lora_rank=16,
            qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        ),
        BitNetConfig(**TINY, num_key_value_heads=4),
    ],
    ids=["router beside shared experts", "norms inside attention and MLP"],
)  # fmt: skip
def test_scaling_alone_changes_nothing_that_others_read(config, tokenizer, tiny_text: wb.Text, monkeypatch) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    base = wb.Variant(model=model, tokenizer=tokenizer, name="base", source="random")
    monkeypatch.setattr(quantize.AWQ, "pack", lambda self, layer, found: layer)
    child = base.apply(quantize.AWQ(head=False, clip=False), tiny_text)
    with torch.no_grad():
        assert torch.allclose(child.model(IDS).logits, base.model(IDS).logits, atol=2e-3, rtol=1e-3)


def test_a_norm_that_adds_one_to_its_weight_is_divided(load_tiny: Callable[[str], wb.Variant]) -> None:
    for architecture in ("gemma", "llama", "gpt_neox"):
        norm = next(m for m in load_tiny(architecture).model.modules() if "Norm" in type(m).__name__)
        scale, x = torch.rand(64) + 0.5, torch.randn(7, 64)
        divided = divided_norm(norm, scale)
        assert divided is not None
        assert torch.allclose(divided(x), norm(x) / scale, atol=1e-4)
    assert divided_norm(torch.nn.SiLU(), scale) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["gemma", "llama", "gpt2"])
def test_a_norm_in_16_bits_is_divided(
    architecture: str, dtype: torch.dtype, load_tiny: Callable[[str], wb.Variant]
) -> None:
    norms = [m for m in load_tiny(architecture).model.to(dtype).modules() if type(m).__name__.endswith("Norm")]
    scale, x = torch.logspace(-0.5, 0.5, 64), torch.randn(7, 64)
    for norm in norms:
        divided = divided_norm(norm, scale)
        assert divided is not None
        with torch.no_grad():
            wanted = norm.float()(x) / scale
            found = divided(x.to(dtype)).float()
        assert float((found - wanted).norm() / wanted.norm()) < 0.01
        norm.to(dtype)


def test_hqq_lowers_the_error_it_fits() -> None:
    torch.manual_seed(7)
    weight = torch.randn(32, 128)
    weight[:, ::40] *= 6  # outliers
    grid = minmax_grid(weight, 3, 64, False)
    fitted = fit_zero(weight, grid, 3, 64, 20)

    def error(each: Grid) -> float:
        return float((dequantize(round_to(weight, each, 3, 64), 64) - weight).abs().pow(POWER).sum())

    assert error(fitted) < error(grid)
    assert torch.equal(fit_zero(weight, grid, 3, 64, 0).zero, grid.zero)


@every_model
@every_method
def test_eight_bits_are_close_on_every_architecture(
    method: type[wb.Step], architecture: str, load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text
) -> None:
    base = load_tiny(architecture)
    child = base.apply(method(bits=8, group_size=32), tiny_text)
    assert divergence(base, child) < 0.02
    assert any(isinstance(module, GroupLinear) for module in child.model.modules())


@every_method
def test_more_bits_are_larger_and_closer(method: type[wb.Step], base: wb.Variant, tiny_text: wb.Text) -> None:
    made = [base.apply(method(bits=bits), tiny_text) for bits in (2, 4, 8)]
    assert [each.total_bytes for each in made] == sorted(each.total_bytes for each in made)
    found = [divergence(base, each) for each in made]
    assert found == sorted(found, reverse=True)


@every_method
def test_the_forecast_is_close(
    method: type[wb.Step], load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text
) -> None:
    for architecture, options in itertools.product(("llama", "qwen3"), ({}, {"head": False}, {"bits": 3})):
        base = load_tiny(architecture)
        step = method(**options)
        child = base.apply(step, tiny_text)
        assert step.forecast(base).weight_bytes == pytest.approx(child.total_bytes, rel=0.1)
        assert step.forecast(base).owned_bytes == pytest.approx(child.owned_bytes, rel=0.15)


def test_spending_is_the_best_there_is() -> None:
    """Against every combination, on convex options, where the greedy rule is optimal up to its last step."""
    options = {
        "a": [Option(2, 2, 9.0), Option(3, 3, 4.0), Option(4, 4, 1.0)],
        "b": [Option(2, 2, 1.0), Option(3, 3, 0.5), Option(4, 4, 0.4)],
        "c": [Option(2, 4, 6.0), Option(3, 6, 3.0), Option(4, 8, 2.0)],
    }
    for room in (8, 9, 10, 12, 16):
        chosen = spend(options, room)
        harm = sum(next(o.harm for o in options[path] if o.bits == bits) for path, bits in chosen.items())
        size = sum(next(o.size for o in options[path] if o.bits == bits) for path, bits in chosen.items())
        best = min(
            sum(each.harm for each in found)
            for found in itertools.product(*options.values())
            if sum(each.size for each in found) <= room
        )
        assert size <= room
        assert harm == pytest.approx(best, abs=0.5)


def test_a_budget_is_kept_and_spent(base: wb.Variant, tiny_text: wb.Text) -> None:
    for bits in (4.0, 5.5):
        child = base.apply(quantize.Budget(bits_per_weight=bits, group_size=32, method="RTN"), tiny_text)
        layers = [m for m in child.model.modules() if isinstance(m, GroupLinear)]
        used = 8 * sum(b.numel() * b.element_size() for m in layers for b in m.buffers())
        weights = sum(m.in_features * m.out_features for m in layers)
        assert bits - 0.7 < used / weights <= bits
        assert {m.bits for m in layers} <= set(WIDTHS)
    with pytest.raises(InvalidInput, match="raise bits_per_weight"):
        base.apply(quantize.Budget(bits_per_weight=2.0), tiny_text)


@pytest.mark.model
def test_on_a_real_model_the_methods_rank_as_published(smollm: wb.Variant) -> None:
    text = wb.read_text("data/prose", window=128, calibration=16, test=4)
    spans = torch.tensor(text.windows(smollm.tokenizer, "test"))

    def off(step: wb.Step) -> float:
        child = smollm.apply(step, text)
        with torch.no_grad():
            ours, theirs = (each.model(spans).logits.float().log_softmax(dim=-1) for each in (smollm, child))
        return float((ours.exp() * (ours - theirs)).sum(-1).mean())

    rounded = off(quantize.RTN(bits=3))
    assert off(quantize.GPTQ(bits=3)) < 0.8 * rounded
    assert off(quantize.RTN(bits=8)) < 0.01
