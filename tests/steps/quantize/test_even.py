"""SmoothQuant, rotation and learned rounding: by hand, as functions that change nothing, and by what they save."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.layers.activations import LayerInput
from workbench.models.packed import GroupLinear, Int8DynamicLinear, Int8Embedding
from workbench.steps import quantize
from workbench.steps.quantize.rotate import orthogonal
from workbench.steps.quantize.rounding import RTN, dequantize
from workbench.steps.quantize.signround import _Learned
from workbench.steps.quantize.smooth import smoothing

IDS = torch.arange(3, 60)[None]


def logits(variant: wb.Variant) -> torch.Tensor:
    with torch.no_grad():
        return variant.model(IDS).logits.float()


def divergence(base: wb.Variant, other: wb.Variant, ids: torch.Tensor = IDS) -> float:
    with torch.no_grad():
        ours, theirs = (each.model(ids).logits.float().log_softmax(dim=-1) for each in (base, other))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def test_smoothing_by_hand() -> None:
    """Equation 4: the root of the activation's peak over the weight's, column by column."""
    weights = [torch.tensor([[1.0, -4.0], [0.5, 2.0]]), torch.tensor([[-2.0, 1.0]])]
    peak = torch.tensor([8.0, 1.0])
    assert smoothing(weights, peak, 0.5).tolist() == pytest.approx([2.0, 0.5])
    assert smoothing(weights, peak, 1.0).tolist() == pytest.approx([8.0, 1.0])
    assert smoothing(weights, peak, 0.0).tolist() == pytest.approx([0.5, 0.25])
    assert torch.isfinite(smoothing([torch.zeros(1, 2)], torch.zeros(2), 0.5)).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gpt_neox", "opt", "gemma"])
def test_smoothing_alone_changes_no_function(
    architecture: str, load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_tiny(architecture)
    monkeypatch.setattr(quantize.SmoothQuant, "packed", lambda self, layer: layer)
    child = base.apply(quantize.SmoothQuant(head=False), tiny_text)
    assert torch.allclose(logits(child), logits(base), atol=2e-3, rtol=1e-3)
    ours, theirs = dict(child.model.named_parameters()), dict(base.model.named_parameters())
    assert any(ours[name] is not theirs[name] for name in theirs), "nothing was scaled"


def test_smoothquant_packs_as_int8_dynamic_does(load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text) -> None:
    base = load_tiny("qwen3")  # head and embedding are tied
    smooth, plain = base.apply(quantize.SmoothQuant(), tiny_text), base.apply(quantize.Int8Dynamic())
    kinds = [[type(each) for each in one.model.modules() if "Int8" in type(each).__name__] for one in (smooth, plain)]
    assert kinds[0] == kinds[1]
    assert {Int8DynamicLinear, Int8Embedding} == set(kinds[0])
    assert smooth.total_bytes == plain.total_bytes
    assert quantize.SmoothQuant().forecast(base).weight_bytes == pytest.approx(smooth.total_bytes, rel=0.01)


@pytest.mark.parametrize("size", [1, 2, 16, 48, 576, 9])
def test_the_rotation_is_one_and_spreads(size: int) -> None:
    turn = orthogonal(size, 0).double()
    assert torch.allclose(turn @ turn.t(), torch.eye(size, dtype=torch.float64), atol=1e-6)
    assert torch.equal(orthogonal(size, 0), orthogonal(size, 0))
    if size >= 16:
        assert not torch.equal(orthogonal(size, 0), orthogonal(size, 1))
        alone = torch.zeros(size, dtype=torch.float64)
        alone[3] = 1.0
        assert float((alone @ turn).abs().max()) < 0.5  # one channel becomes a little of all
    if size == 16:  # a power of two: Hadamard's own, of equal sizes
        assert torch.allclose(turn.abs(), torch.full((16, 16), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("heads", [True, False])
def test_turning_changes_no_function(architecture: str, heads: bool, load_tiny: Callable[[str], wb.Variant]) -> None:
    base = load_tiny(architecture)
    for norm in (each for each in base.model.modules() if type(each).__name__.endswith("RMSNorm")):
        nn.init.uniform_(norm.weight, 0.5, 2.0)  # so that what is folded into the layers is not one
    child = base.apply(quantize.Rotate(heads=heads))
    assert torch.allclose(logits(child), logits(base), atol=2e-3, rtol=1e-3)
    ours, theirs = dict(child.model.named_parameters()), dict(base.model.named_parameters())
    assert not any(torch.equal(ours[name], theirs[name]) for name in theirs if "_proj" in name and "o_proj" not in name)
    tied = base.model.config.tie_word_embeddings
    assert not child.model.config.tie_word_embeddings
    assert any("one table before" in note for note in child.notes) == tied
    assert quantize.Rotate().forecast(base).weight_bytes == pytest.approx(child.total_bytes, rel=0.01)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_turned_as_compressed_tensors_turns(
    architecture: str, load_tiny: Callable[[str], wb.Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one Hadamard matrix for both, every weight is the one that the library's transforms (R1, R2) give."""
    transform = pytest.importorskip("compressed_tensors.transform")
    hadamard = pytest.importorskip("compressed_tensors.transform.utils.hadamard")

    def sylvester(size: int, seed: int) -> torch.Tensor:
        return torch.as_tensor(hadamard.deterministic_hadamard_matrix(size, torch.float32) / size**0.5)

    base = load_tiny(architecture)
    for norm in (each for each in base.model.modules() if type(each).__name__.endswith("RMSNorm")):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
    monkeypatch.setattr("workbench.steps.quantize.rotate.orthogonal", sylvester)
    ours = dict(base.apply(quantize.Rotate()).model.named_parameters())
    model = copy.deepcopy(base.model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    folded = [(model.model.norm, [model.lm_head])]
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        folded += [(block.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj])]
        folded += [(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])]
    for norm, layers in folded:
        for layer in layers:
            layer.weight.data *= norm.weight.data
        nn.init.ones_(norm.weight)
    places, writes, reads = transform.TransformArgs, ["re:.*o_proj$", "re:.*down_proj$"], ["q", "k", "v", "gate", "up"]
    hidden = transform.TransformScheme(type="hadamard", apply=[
        places(targets=["re:.*embed_tokens$", *writes], location="weight_output"),
        places(targets=[*(f"re:.*{each}_proj$" for each in reads), "lm_head"], location="weight_input", inverse=True),
    ])  # fmt: skip
    heads = transform.TransformScheme(type="hadamard", head_dim=model.config.head_dim, apply=[
        places(targets=["re:.*v_proj$"], location="weight_output"),
        places(targets=["re:.*o_proj$"], location="weight_input", inverse=True),
    ])  # fmt: skip
    transform.apply_transform_config(model, transform.TransformConfig(config_groups={"R1": hidden, "R2": heads}))
    theirs = {name: each for name, each in model.named_parameters() if name in ours}
    assert theirs.keys() == ours.keys()
    for name, each in theirs.items():
        torch.testing.assert_close(ours[name], each, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox"])
def test_what_is_normalized_otherwise_is_not_turned(architecture: str, load_tiny: Callable[[str], wb.Variant]) -> None:
    with pytest.raises(InvalidInput, match="cannot be turned"):
        load_tiny(architecture).apply(quantize.Rotate())


def test_learned_rounding_begins_as_rounding_to_nearest(base: wb.Variant) -> None:
    layer = base.model.get_submodule("model.layers.0.mlp.up_proj")
    for symmetric in (False, True):
        step = quantize.SignRound(bits=3, group_size=32, symmetric=symmetric)
        learned = _Learned(layer, step)
        plain = RTN(bits=3, group_size=32, symmetric=symmetric).quantize(layer.weight.float(), None)
        assert torch.equal(learned.codes().codes, plain.codes)
        assert torch.allclose(learned.weight().float(), dequantize(plain, 32), atol=1e-6)


def test_a_step_of_learning_follows_the_sign_of_the_gradient() -> None:
    """One weight of 0.4 between the levels 0 and 1: a gradient that wants it larger rounds it up after enough steps."""
    layer = nn.Linear(32, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, 15.0, 0.4] + [0.0] * 29)[None])
    learned = _Learned(layer, quantize.SignRound(group_size=32))
    assert learned.weight()[0, 2] == 0.0
    for _ in range(3):
        (-learned.weight()[0, 2]).backward()
        learned.move(0.05)
    learned.keep()
    assert float(learned.weight().detach()[0, 2]) > 0.9
    assert learned.codes().codes[0, 2] == 1


def test_learned_rounding_loses_less(base: wb.Variant, tiny_text: wb.Text) -> None:
    text = tiny_text.model_copy(update={"calibration": 8})
    plain, learned = (
        base.apply(step(bits=3, group_size=32, head=False), text) for step in (quantize.RTN, quantize.SignRound)
    )
    assert any(isinstance(each, GroupLinear) for each in learned.model.modules())
    assert learned.total_bytes == plain.total_bytes
    ids = torch.tensor(text.windows(base.tokenizer, "calibration"))
    assert divergence(base, learned, ids) < 0.7 * divergence(base, plain, ids)


def test_a_block_that_is_left_out_stays(base: wb.Variant, tiny_text: wb.Text) -> None:
    child = base.apply(quantize.SignRound(exclude="0", steps=2, head=False), tiny_text)
    kinds = {path.split(".")[2] for path, each in child.model.named_modules() if isinstance(each, GroupLinear)}
    assert kinds == {"1"}


def test_peaks_are_those_of_the_inputs(base: wb.Variant, tiny_text: wb.Text) -> None:
    from workbench.layers.calibration import statistics

    path, seen = "model.layers.0.self_attn.q_proj", []
    hook = base.model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            base.model(torch.tensor(tiny_text.windows(base.tokenizer, "calibration")))
    finally:
        hook.remove()
    found: LayerInput = statistics(base, tiny_text).layers[path]
    assert torch.allclose(found.peak, seen[0].abs().flatten(0, 1).amax(dim=0), rtol=1e-4)


@pytest.mark.model
def test_on_a_real_model_each_keeps_its_promise(smollm: wb.Variant) -> None:
    text = wb.read_text("data/prose", window=128, calibration=16, test=4)
    ids = torch.tensor(text.windows(smollm.tokenizer, "test"))

    def off(*steps: wb.Step) -> float:
        return divergence(smollm, wb.Recipe(steps).apply(smollm, text), ids)

    dynamic = off(quantize.Int8Dynamic())
    assert off(quantize.SmoothQuant()) < 0.6 * dynamic
    assert off(quantize.Rotate(), quantize.Int8Dynamic()) < 0.6 * dynamic
    assert off(quantize.Rotate()) < 1e-6
