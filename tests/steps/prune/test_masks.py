"""Sparsity against hand-computed masks and an exact elimination in float64."""

import pytest
import torch

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.layers.activations import LayerInput
from workbench.models.packed import dense_weight, linear_layers
from workbench.steps import prune
from workbench.steps.prune.masks import keep_mask, sparsegpt


def fed(norm: list[float]) -> LayerInput:
    tensor = torch.tensor(norm)
    return LayerInput(tokens=1, norm=tensor, mean=tensor, peak=tensor, hessian=None, source=None)


def zeros(variant: wb.Variant) -> float:
    weights = [dense_weight(layer) for _, layer in linear_layers(variant.model)]
    return sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)


def test_magnitude_by_hand() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0], [-2.0, 6.0, 5.0]])
    expected = torch.tensor([[0.0, -4.0, 0.0], [0.0, 6.0, 5.0]])
    assert torch.equal(prune.Magnitude(sparsity=0.5).change(weight, None), expected)


def test_wanda_by_hand() -> None:
    """Scores are [1*9, 4*1, 3*2, 2*0.5] and [2*9, 6*1, 5*2, 8*0.5]: the two lowest of each row go."""
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0], [-2.0, 6.0, 5.0, 8.0]])
    expected = torch.tensor([[1.0, 0.0, 3.0, 0.0], [-2.0, 0.0, 5.0, 0.0]])
    assert torch.equal(prune.Wanda(sparsity=0.5).change(weight, fed([9.0, 1.0, 2.0, 0.5])), expected)


@pytest.mark.parametrize(("pattern", "group"), [("2:4", 4), ("4:8", 8)])
def test_patterns_keep_exactly_half_of_every_run(pattern: str, group: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 64)
    for step in (prune.Magnitude(pattern=pattern), prune.Wanda(pattern=pattern)):
        pruned = step.change(weight, fed([1.0] * 64))
        assert ((pruned.view(16, -1, group) != 0).sum(-1) == group // 2).all()
    pruned = sparsegpt(weight, torch.eye(64), 0.5, group)
    assert ((pruned.view(16, -1, group) != 0).sum(-1) == group // 2).all()


def test_a_row_that_is_no_multiple_of_the_pattern_keeps_its_rest() -> None:
    mask = keep_mask(torch.tensor([[4.0, 3.0, 2.0, 1.0, 9.0, 8.0]]), 0.5, 4, rows=True)
    assert mask.tolist() == [[True, True, False, False, False, False]]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.99])
def test_exactly_the_share_goes_even_with_ties(sparsity: float) -> None:
    score = torch.ones(7, 100)
    assert ((~keep_mask(score, sparsity, 0, rows=True)).sum(1) == int(100 * sparsity)).all()
    assert int((~keep_mask(score, sparsity, 0, rows=False)).sum()) == int(700 * sparsity)


def exact(weight: torch.Tensor, hessian: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """Prune columns from left to right; each time the rest of the row takes the optimal correction, by elimination."""
    weight, hessian = weight.double().clone(), hessian.double()
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.double)
    for row in range(len(weight)):
        inverse = torch.linalg.inv(hessian)
        for column in range(weight.shape[1]):
            if gone[row, column]:
                weight[row] -= weight[row, column] / inverse[column, column] * inverse[column]
                weight[row, column] = 0
            # Columns passed are settled: they leave the problem.
            inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
            inverse[column] = inverse[:, column] = 0
            inverse[column, column] = 1
    return weight


@pytest.mark.parametrize("group", [0, 4])
def test_sparsegpt_is_elimination_column_by_column(group: int) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(400, 24) @ torch.randn(24, 24), torch.randn(6, 24)
    hessian = x.t() @ x / len(x)
    found = sparsegpt(weight, hessian, 0.5, group)
    assert torch.allclose(found.double(), exact(weight, hessian, found == 0), atol=1e-3)
    plain = weight * keep_mask(weight.abs(), 0.5, group, rows=True)
    error = [float(((each - weight) @ hessian * (each - weight)).sum()) for each in (found, plain)]
    assert error[0] < 0.9 * error[1]


def test_sparsegpt_across_blocks_of_columns_is_the_same_elimination() -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(900, 160) @ torch.randn(160, 160), torch.randn(2, 160)
    hessian = x.t() @ x / len(x)
    found = sparsegpt(weight, hessian, 0.4, 0)
    assert torch.allclose(found.double(), exact(weight, hessian, found == 0), atol=2e-2)


def test_a_column_that_is_never_fed_is_dropped_by_sparsegpt() -> None:
    hessian = torch.eye(8)
    hessian[3, 3] = 0
    weight = torch.arange(1.0, 17.0).view(2, 8)
    pruned = sparsegpt(weight, hessian, 0.25, 0)
    assert (pruned[:, 3] == 0).all()
    assert torch.isfinite(pruned).all()
    assert weight[0, 3] == 4, "the given weight is not written"


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InvalidInput, match="not finite"):
        sparsegpt(torch.ones(2, 4), torch.full((4, 4), float("nan")), 0.5, 0)


@pytest.mark.parametrize("step", [prune.Magnitude, prune.Wanda, prune.SparseGPT])
def test_no_sparsity_is_the_identity_and_all_is_refused(
    step: type[wb.Step], base: wb.Variant, tiny_text: wb.Text
) -> None:
    child = base.apply(step(sparsity=0.0), tiny_text)
    assert child.model is base.model
    with pytest.raises(InvalidInput, match="sparsity"):
        step(sparsity=1.0)
    with pytest.raises(InvalidInput, match=r"sets half of the weights to zero: set sparsity to 0\.5"):
        step(sparsity=0.7, pattern="2:4")


@pytest.mark.parametrize(
    "step", [prune.Magnitude(sparsity=0.6), prune.Wanda(sparsity=0.6), prune.SparseGPT(sparsity=0.6)]
)
def test_the_share_asked_for_is_zero(step: wb.Step, base: wb.Variant, tiny_text: wb.Text) -> None:
    assert zeros(base.apply(step, tiny_text)) == pytest.approx(0.6, abs=0.01)


def test_a_threshold_for_the_whole_model(base: wb.Variant) -> None:
    child = base.apply(prune.Magnitude(sparsity=0.3, scope="model"))
    before = torch.cat([dense_weight(layer).flatten() for _, layer in linear_layers(base.model)]).abs()
    after = torch.cat([dense_weight(layer).flatten() for _, layer in linear_layers(child.model)])
    assert float((after == 0).float().mean()) == pytest.approx(0.3, abs=1e-3)
    assert float(before[after == 0].max()) <= float(before[after != 0].min())
    with pytest.raises(InvalidInput, match="set scope to 'layer'"):
        prune.Magnitude(scope="model", pattern="2:4")


def test_a_tied_embedding_is_left_alone(load_tiny, tiny_text: wb.Text) -> None:
    base = load_tiny("qwen3")
    child = base.apply(prune.Wanda(), tiny_text)
    assert child.model.get_input_embeddings().weight is base.model.get_input_embeddings().weight
    assert child.model.get_output_embeddings().weight is child.model.get_input_embeddings().weight
