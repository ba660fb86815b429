"""Mixtures of experts: steps see one linear layer an expert and projection, and say what they do not reach."""

from collections.abc import Callable
from pathlib import Path

import elsewhere
import pytest
import torch
from architectures import tiny_folder

import workbench as wb
from workbench.layers.calibration import statistics
from workbench.models.blocks import decoder_blocks
from workbench.models.experts import Experts, all_experts, as_layers, coverage
from workbench.models.packed import GroupLinear
from workbench.steps import distil, finetune, prune, quantize
from workbench.training.step import curve

MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe", "nemotron_h")
IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def load_mixture(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], wb.Variant]:
    root = tmp_path_factory.mktemp("mixtures")

    def load(name: str) -> wb.Variant:
        folder = root / name
        if not folder.exists():
            tiny_folder(folder, name, tokenizer, spread=0.1)  # wider ones turn a rounding into another expert
        return wb.load(folder, device="cpu", dtype="float32")

    return load


@pytest.fixture
def mixture(load_mixture) -> wb.Variant:
    return load_mixture("mixtral")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits[0]


def expert_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight for name, weight in model.named_parameters() if ".experts." in name and weight.ndim == 3]


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_as_layers_give_the_same(load_mixture, name: str) -> None:
    model = load_mixture(name).model
    split = as_layers(model)
    assert any(all_experts(split))
    assert torch.allclose(logits(split), logits(model), rtol=1e-4, atol=1e-4)
    ours = {tensor.untyped_storage().data_ptr() for tensor in split.parameters()}
    assert ours == {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}, "no weight is copied"
    assert as_layers(split) is split
    assert decoder_blocks(split)[0] == decoder_blocks(model)[0]


def test_a_dense_model_stays_as_it_is(base: wb.Variant) -> None:
    assert as_layers(base.model) is base.model


@pytest.mark.parametrize("name", MIXTURES)
def test_they_are_quantized_and_pruned_like_any_layer(load_mixture, name: str) -> None:
    base = load_mixture(name)
    before = sum(weight.numel() * 4 for weight in expert_weights(base.model))
    small = base.apply(quantize.RTN(bits=4, group_size=32, head=False))
    assert base.total_bytes - small.total_bytes > 0.8 * before
    assert not [note for note in small.notes if "reached" in note]
    plain = expert_weights(base.model)
    joined = [each.joined() for _, each in all_experts(small.model)]
    rounded = [weight for each in joined for weight in each.values() if weight.ndim == 3]
    for ours, theirs in zip(rounded, plain, strict=True):
        assert ours.shape == theirs.shape
        assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.2
    thin = base.apply(prune.Magnitude(sparsity=0.5))
    for _, each in all_experts(as_layers(thin.model)):
        for side in each.projections:
            for layer in each.get_submodule(side).children():
                assert float((layer.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert base.generate("Rain", max_new_tokens=3).token_ids


def test_an_expert_is_calibrated_on_the_tokens_routed_to_it(mixture: wb.Variant, tiny_text: wb.Text) -> None:
    """Against the router's own choice in a plain forward pass."""
    seen = statistics(mixture, tiny_text).layers
    fed: dict[int, list[torch.Tensor]] = {}
    first = mixture.model.model.layers[0].mlp

    def note(_, args: tuple[torch.Tensor, ...]) -> None:
        hidden, chosen, _weights = args
        for expert in range(first.experts.num_experts):
            fed.setdefault(expert, []).append(hidden[(chosen == expert).any(dim=1)])

    hook = first.experts.register_forward_pre_hook(note)
    windows = torch.tensor(tiny_text.windows(mixture.tokenizer, "calibration"))
    with torch.no_grad():
        mixture.model(input_ids=windows, use_cache=False)
    hook.remove()
    for expert, rows in fed.items():
        inputs = seen[f"model.layers.0.mlp.experts.gate_up_proj.{expert}"]
        whole = torch.cat(rows)
        assert inputs.tokens == len(whole) > 0
        assert torch.allclose(inputs.norm, whole.square().mean(dim=0).sqrt(), rtol=1e-3)


@pytest.mark.parametrize(
    "step", [quantize.GPTQ(), quantize.AWQ(), quantize.Budget(), prune.Wanda(), prune.SparseGPT()], ids=repr
)
def test_steps_with_data(mixture: wb.Variant, tiny_text: wb.Text, step: wb.Step) -> None:
    made = mixture.apply(step, tiny_text)
    assert logits(made.model).isfinite().all()
    for _, experts in all_experts(as_layers(made.model)):
        for side in experts.projections:
            for layer, before in zip(experts.get_submodule(side).children(), range(99), strict=False):
                changed = isinstance(layer, GroupLinear) or float((layer.weight == 0).float().mean()) > 0.4
                assert changed, before


def test_an_expert_that_no_token_chose_is_changed_without_data(mixture: wb.Variant, tokenizer) -> None:
    few = wb.Text(name="few", text="Rain. " * 40, window=2, calibration=1, test=1)
    made = mixture.apply(prune.Wanda(sparsity=0.5), few)
    (note,) = [note for note in made.notes if "not at all" in note]
    assert "layers of experts" in note
    assert all(
        float((layer.weight == 0).float().mean()) > 0.4
        for _, experts in all_experts(as_layers(made.model))
        for side in experts.projections
        for layer in experts.get_submodule(side).children()
    )


def test_sensitivity_of_experts(mixture: wb.Variant, tiny_text: wb.Text) -> None:
    """Doubling a step's effect quadruples what it costs to second order; experts included."""
    found = wb.sensitivity(mixture, tiny_text, prune.Magnitude, strengths=(0.3, 0.7))
    rows = [row for row, name in enumerate(found.layers) if ".experts." in name]
    assert len(rows) == 2 * 4 * len(decoder_blocks(mixture.model)[1])
    assert (found.kl[rows] >= 0).all()
    assert (found.kl[rows, 1] > found.kl[rows, 0]).mean() > 0.9


def test_a_diff_names_the_experts(mixture: wb.Variant) -> None:
    table = wb.diff(mixture, mixture.apply(prune.Magnitude(sparsity=0.5))).table()
    experts = [row for row in table.itertuples() if "experts" in str(row)]
    assert len(experts) == 2 * 4 * len(decoder_blocks(mixture.model)[1])


@pytest.mark.parametrize("step", [finetune.LoRA(epochs=1.0), distil.SequenceLevel(epochs=1.0, rank=2)], ids=repr)
def test_what_adapters_do_not_reach_is_said(mixture: wb.Variant, tiny_task: wb.Task, step: wb.Step) -> None:
    start = (
        mixture.apply(prune.DropBlocks(share=0.5, order="last"), tiny_task) if step.family() == "distil" else mixture
    )
    made = start.apply(step, tiny_task)
    (note,) = [each for each in made.notes if "experts" in each.lower()]
    assert note.startswith(f"{step.label} reached ")
    assert note in curve(made).notes


def test_the_share_that_is_said(mixture: wb.Variant, load_tiny) -> None:
    split = as_layers(mixture.model)
    root, blocks = decoder_blocks(split)
    attention = [f"{root}.0.self_attn.q_proj"]
    whole = sum(each.numel() for each in blocks.parameters() if each.ndim > 1)
    share = 64 * 64 / whole
    assert coverage(split, attention, "X") == (
        f"X reached {share:.0%} of the weights in the blocks; the rest is in excluded layers and MixtralTopKRouter.",
    )
    for architecture in ("llama", "gpt2", "gemma"):
        assert load_tiny(architecture).apply(quantize.RTN()).notes == ()
    (note,) = mixture.apply(quantize.RTN(exclude="experts")).notes
    assert "excluded layers" in note


def test_a_mixture_of_another_kind_is_left_alone_and_said(load_mixture) -> None:
    base = load_mixture("llama4_text")
    assert not any(isinstance(module, Experts) for module in as_layers(base.model).modules())
    (note,) = base.apply(quantize.RTN()).notes
    assert "Llama4TextExperts" in note


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(
    "step", [quantize.RTN(bits=4, group_size=32), quantize.NF4(), quantize.Int8(), prune.Magnitude()], ids=repr
)
def test_round_trip(load_mixture, tmp_path: Path, name: str, step: wb.Step) -> None:
    made = load_mixture(name).apply(step)
    again = wb.load(made.save(tmp_path / "export"))
    assert torch.allclose(logits(again.model), logits(made.model), atol=1e-5)
    assert again.generate("Rain", max_new_tokens=4).token_ids == made.generate("Rain", max_new_tokens=4).token_ids
    assert again.total_bytes == pytest.approx(made.total_bytes, rel=0.02)


def test_plain_transformers_reads_them(load_mixture, tiny_text: wb.Text, tmp_path: Path) -> None:
    mixture, latent = load_mixture("mixtral"), load_mixture("deepseek_v3")
    made = {
        step.label: mixture.apply(step, tiny_text)
        for step in (quantize.RTN(bits=4, group_size=32), quantize.NF4(), prune.Wanda())
    }
    # Narrow layers of latent attention, which bitsandbytes has no layout for, stay dense for others.
    made["latent"] = latent.apply(quantize.NF4())
    found = elsewhere.read({name: each.save(tmp_path / name) for name, each in made.items()}, IDS, tmp_path, {})
    for name, each in made.items():
        theirs = found[f"{name}:logits"][0]
        assert theirs.shape == logits(each.model).shape
        assert theirs.isfinite().all()
        assert found[f"{name}:tokens"].tolist() == each.tokenizer.encode(elsewhere.TEXT)
        assert name == "latent" or elsewhere.divergence(logits(each.model), theirs) < 2e-3, name
