"""Narrower models: equal to the dense model with what was removed set to zero, and plain models again."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)
from transformers.pytorch_utils import Conv1D

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.models import sharing
from workbench.models.packed import linear_layers
from workbench.steps import quantize
from workbench.steps.prune import width
from workbench.steps.prune.width import Width

IDS = torch.arange(3, 40)[None]
SMALL = {
    "vocab_size": 400,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SEPARATE_HEADS = ("llama", "qwen3", "gemma")


@pytest.fixture
def variant_of(tokenizer) -> Callable[[PreTrainedConfig], wb.Variant]:
    """A variant of a random model of a configuration, its biases and norms random too."""

    def build(config: PreTrainedConfig) -> wb.Variant:
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        return wb.Variant(model=model, tokenizer=tokenizer, name="base", source="random")

    return build


@pytest.fixture
def known(monkeypatch) -> Callable[[wb.Variant], dict[str, torch.Tensor]]:
    """Replaces calibration by random importances, and gives them by the path of the layer that reads the channels."""

    def replace(variant: wb.Variant) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        layers = {
            path: torch.rand(layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.weight.shape[1])
            for path, layer in linear_layers(variant.model)
        }
        hidden = torch.rand(variant.model.config.hidden_size)
        seen = SimpleNamespace(
            layers={path: SimpleNamespace(mean=each, norm=each) for path, each in layers.items()}, hidden=hidden
        )
        monkeypatch.setattr(width, "statistics", lambda *_: seen)
        return layers | {"hidden": hidden}

    return replace


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def zeroed(variant: wb.Variant, importance: dict[str, torch.Tensor], endings: tuple[str, ...], group: int, kept: int):
    """Logits of the dense model in which the layers with these names read nothing from the groups ranked lowest."""
    model = sharing.share(variant.model)
    for path, layer in linear_layers(model):
        if not path.endswith(endings):
            continue
        energy = importance[path].square().view(-1, group).sum(dim=1)
        removed = torch.ones(len(energy)).index_fill(0, energy.topk(kept).indices, 0).repeat_interleave(group).bool()
        weight = layer.weight.clone()
        if isinstance(layer, Conv1D):
            weight[removed] = 0
        else:
            weight[:, removed] = 0
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    with torch.no_grad():
        return model(IDS).logits


def check_plain(child: wb.Variant, base: wb.Variant, step: Width) -> None:
    """A smaller model that transformers would build the same way, and that shares what did not change."""
    assert shapes(AutoModelForCausalLM.from_config(child.model.config)) == shapes(child.model)
    forecast = step.forecast(base)
    assert (forecast.weight_bytes, forecast.owned_bytes) == (child.total_bytes, child.owned_bytes)
    assert child.total_bytes < base.total_bytes
    before = dict(base.model.named_parameters())
    for name, tensor in child.model.named_parameters():
        assert (tensor is before[name]) == (tensor.shape == before[name].shape), name
    with torch.no_grad():
        whole = child.model(IDS, use_cache=False).logits[:, -1]
        start = child.model(IDS[:, :-1], use_cache=True)
        one = child.model(IDS[:, -1:], past_key_values=start.past_key_values).logits[:, -1]
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fewer_channels_equal_the_dense_model_with_them_at_zero(architecture, load_tiny, known) -> None:
    base = load_tiny(architecture)
    importance, step = known(base), Width(mlp=0.5)
    child = base.apply(step, wb.Text(name="unused", text="a", window=2, calibration=0, test=1))
    size = {"gpt2": 256}.get(architecture, 128)
    expected = zeroed(base, importance, ("down_proj", "dense_4h_to_h", "fc2", "mlp.c_proj"), 1, size // 2)
    with torch.no_grad():
        torch.testing.assert_close(child.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    check_plain(child, base, step)


@pytest.mark.parametrize("architecture", SEPARATE_HEADS)
def test_fewer_heads_equal_the_dense_model_with_them_at_zero(architecture, load_tiny, known, tiny_text) -> None:
    base = load_tiny(architecture)
    importance, step = known(base), Width(mlp=0, heads=0.5)
    child = base.apply(step, tiny_text)
    with torch.no_grad():
        got = child.model(IDS).logits
    torch.testing.assert_close(got, zeroed(base, importance, ("o_proj",), 32, 1), rtol=1e-4, atol=1e-4)
    assert (child.model.config.num_attention_heads, child.model.config.num_key_value_heads) == (2, 1)
    assert child.model.config.head_dim == 16
    check_plain(child, base, step)


@pytest.mark.parametrize(
    "config", [Phi3Config(**SMALL), Qwen2Config(**SMALL), Phi3Config(**SMALL | {"num_key_value_heads": 4})]
)
def test_fused_layers_and_biases(config, variant_of, known, tiny_text) -> None:
    base = variant_of(config)
    importance = known(base)
    groups = config.num_key_value_heads
    for step, ending, group, kept in (
        (Width(mlp=0.5), "down_proj", 1, 64),
        (Width(mlp=0, heads=0.5), "o_proj", 64 // groups, groups // 2),
    ):
        child = base.apply(step, tiny_text)
        with torch.no_grad():
            got = child.model(IDS).logits
        torch.testing.assert_close(got, zeroed(base, importance, (ending,), group, kept), rtol=1e-4, atol=1e-4)
        check_plain(child, base, step)


@pytest.mark.parametrize("tied", [False, True])
def test_fewer_hidden_channels_are_selected_from_every_tensor(tied, variant_of, known, tiny_text) -> None:
    base = variant_of(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    kept = known(base)["hidden"].topk(48).indices.sort().values
    step = Width(mlp=0, hidden=0.25)
    child = base.apply(step, tiny_text)
    before = dict(base.model.named_parameters(remove_duplicate=False))
    for name, tensor in child.model.named_parameters(remove_duplicate=False):
        output = name.endswith(("o_proj.weight", "down_proj.weight")) or "norm" in name
        assert torch.equal(tensor, before[name][kept] if output else before[name][:, kept]), name
    assert (child.model.lm_head.weight is child.model.model.embed_tokens.weight) == tied
    check_plain(child, base, step)


def test_all_at_once_with_real_calibration(base, tiny_text, tmp_path) -> None:
    step = Width(mlp=0.5, heads=0.5, hidden=0.5)
    child = base.apply(step, tiny_text)
    check_plain(child, base, step)
    again = wb.load(child.save(tmp_path / "export"), device="cpu")
    with torch.no_grad():
        assert torch.equal(again.model(IDS).logits, child.model(IDS).logits)
    assert child.generate("Rain", max_new_tokens=3).token_ids == again.generate("Rain", max_new_tokens=3).token_ids


def test_the_least_active_channels_go(base, tiny_text) -> None:
    child = base.apply(Width(mlp=0.75), tiny_text)
    active = []
    down = base.model.model.layers[0].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda _, args: active.append(args[0].abs().flatten(0, 1)))
    base.model(torch.tensor(tiny_text.windows(base.tokenizer, "calibration")))
    hook.remove()
    kept = torch.cat(active).mean(dim=0).topk(32).indices.sort().values
    assert torch.equal(child.model.model.layers[0].mlp.down_proj.weight, down.weight[:, kept])


def test_zero_is_the_identity(base, tiny_text) -> None:
    child = base.apply(Width(mlp=0), tiny_text)
    assert child.owned_bytes == 0
    assert torch.equal(child.model(IDS).logits, base.model(IDS).logits)


@pytest.mark.parametrize(("share", "left"), [(0.01, None), (0.25, 96), (0.3, 96), (0.5, 64), (0.9, 32)])
def test_what_stays_of_the_mlp_is_a_multiple_of_32(share, left, base, tiny_text) -> None:
    if left is None:
        with pytest.raises(InvalidInput, match=r"mlp=0.01 would remove none of the 128 .* 0, or 0.25 and more"):
            base.apply(Width(mlp=share), tiny_text)
    else:
        assert base.apply(Width(mlp=share), tiny_text).model.config.intermediate_size == left


@pytest.mark.parametrize(("share", "left"), [(0.2, None), (0.33, None), (0.34, 2), (0.6, 2), (0.7, 1), (0.9, 1)])
def test_three_key_value_heads_go_whole(share, left, variant_of, tiny_text) -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16}
    base = variant_of(LlamaConfig(**SMALL | sizes))
    step = Width(mlp=0, heads=share)
    if left is None:
        for refused in (lambda: base.apply(step, tiny_text), lambda: step.forecast(base)):
            with pytest.raises(InvalidInput, match=r"would remove none of the 3 .* 0.34 and more"):
                refused()
    else:
        config = base.apply(step, tiny_text).model.config
        assert (config.num_key_value_heads, config.num_attention_heads) == (left, 2 * left)


def test_numbers_that_transformers_refuses_are_passed_over(variant_of, tiny_text) -> None:
    base = variant_of(LlamaConfig(**SMALL | {"num_key_value_heads": 4}))  # 64 is not divisible by three heads
    with pytest.raises(InvalidInput, match=r"0.5 and more"):
        base.apply(Width(mlp=0, heads=0.25), tiny_text)
    assert base.apply(Width(mlp=0, heads=0.7), tiny_text).model.config.num_attention_heads == 2
    nine = LlamaConfig(**SMALL | {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8})
    with pytest.raises(InvalidInput, match=r"use 0\.$"):
        variant_of(nine).apply(Width(mlp=0, hidden=0.5), tiny_text)


@pytest.mark.parametrize(
    ("config", "step", "message"),
    [
        (LlamaConfig(**SMALL | {"num_key_value_heads": 1}), Width(mlp=0, heads=0.5), "would remove none of the 1"),
        (MixtralConfig(**SMALL), Width(), "does not know"),
        (Olmo2Config(**SMALL), Width(mlp=0, heads=0.5), "does not know"),
    ],
)
def test_what_it_cannot_cut_is_refused(config, step, message, variant_of, tiny_text) -> None:
    with pytest.raises(InvalidInput, match=message):
        variant_of(config).apply(step, tiny_text)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("knob", ["heads", "hidden"])
def test_heads_without_a_size_of_their_own_are_refused(architecture, knob, load_tiny, tiny_text) -> None:
    with pytest.raises(InvalidInput, match="no size of a head apart"):
        load_tiny(architecture).apply(Width(**{"mlp": 0.0, knob: 0.5}), tiny_text)


def test_a_scale_made_from_the_hidden_size_is_refused(load_tiny, tiny_text) -> None:
    with pytest.raises(InvalidInput, match="scalar_embed_scale"):
        load_tiny("gemma").apply(Width(mlp=0, hidden=0.5), tiny_text)


def test_quantized_models_are_refused(base, tiny_text) -> None:
    packed = base.apply(quantize.Int8())
    for step in (Width(), Width(mlp=0)):
        with pytest.raises(InvalidInput, match="dense parent"):
            packed.apply(step, tiny_text)


@pytest.mark.model
def test_the_embedded_model_with_three_quarters_of_its_mlp(smollm) -> None:
    text = wb.read_text("data/prose", window=64, calibration=4, test=2)
    child = smollm.apply(Width(mlp=0.25), text)
    assert child.model.config.intermediate_size == 1152
    assert "lobster" in child.generate("What is a lobster?", max_new_tokens=12).text
