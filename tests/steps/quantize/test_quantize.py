"""Quantizing whole models: what gets packed, what stays shared, what is refused."""

from collections.abc import Callable

import pytest
import torch

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.models import packed
from workbench.steps import prompt, quantize

IDS = torch.arange(3, 60)[None]
STEPS = [quantize.NF4(), quantize.FP4(), quantize.LLMInt8(), quantize.Int8(), quantize.Int8Dynamic(), quantize.FP8()]
# Kullback-Leibler divergence from the dense model, nats a token: a tenth of what a random answer would give.
NEAR = {"NF4": 1.0, "FP4": 1.5, "LLMInt8": 0.05, "Int8": 0.05, "Int8Dynamic": 0.1, "FP8": 0.2}

by_label = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.label)


def log_chances(variant: wb.Variant, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return variant.model(ids).logits.float().log_softmax(dim=-1)


def divergence(base: wb.Variant, other: wb.Variant) -> float:
    ours, theirs = log_chances(base), log_chances(other)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def layers(variant: wb.Variant) -> dict[str, packed.PackedLinear]:
    return {path: m for path, m in variant.model.named_modules() if isinstance(m, packed.PackedLinear)}


@by_label
def test_the_model_is_the_one_with_dequantized_weights(load_tiny: Callable[[str], wb.Variant], step: wb.Step) -> None:
    """Against a copy of the dense model with the dequantized weights written back, GPT-2's turned ones too."""
    for architecture in ("llama", "gpt2", "gemma"):
        base, dense = load_tiny(architecture), load_tiny(architecture)
        child = base.apply(step)
        for path, layer in layers(child).items():
            module = dense.model.get_submodule(path)
            turned = layer.dequantize().T if isinstance(module, packed.Conv1D) else layer.dequantize()
            with torch.no_grad():
                module.weight.copy_(turned)  # a tied head takes the embedding along
        off = divergence(dense, child)
        assert abs(off) < 0.03
        assert 1e-7 < divergence(base, child) < NEAR[step.label]


@by_label
def test_the_variant_gets_smaller(base: wb.Variant, step: wb.Step) -> None:
    child = base.apply(step)
    for layer in layers(child).values():
        dense = layer.in_features * layer.out_features * 4
        assert sum(t.untyped_storage().nbytes() for t in layer.buffers()) < dense / 2.5
    assert child.total_bytes < base.total_bytes


@by_label
def test_the_forecast_is_close(load_tiny: Callable[[str], wb.Variant], step: wb.Step) -> None:
    for architecture in ("llama", "gpt2", "qwen3"):
        base = load_tiny(architecture)
        forecast = step.forecast(base)
        child = base.apply(step)
        assert forecast.owned_bytes == pytest.approx(child.owned_bytes, rel=0.15)
        assert forecast.weight_bytes == pytest.approx(child.total_bytes, rel=0.15)
        assert forecast.seconds is not None
        assert forecast.seconds > 0


def test_the_forecast_of_a_request_step_is_nothing(base: wb.Variant) -> None:
    forecast = prompt.System(text="Hm.").forecast(base)
    assert (forecast.owned_bytes, forecast.weight_bytes) == (0, base.total_bytes)


@pytest.mark.parametrize("step", [quantize.Int8(), quantize.Int8Dynamic()], ids=lambda step: step.label)
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "gemma", "opt"])
def test_a_tied_embedding_reads_the_heads_own_bytes(
    load_tiny: Callable[[str], wb.Variant], step: wb.Step, architecture: str
) -> None:
    base = load_tiny(architecture)
    child = base.apply(step)
    head, embedding = child.model.get_output_embeddings(), child.model.get_input_embeddings()
    assert head.weight.dtype == torch.int8
    assert embedding.weight.data_ptr() == head.weight.data_ptr()
    assert not any(tuple(p.shape) == tuple(head.weight.shape) for p in child.model.parameters()), (
        "a dense table is left"
    )
    with torch.no_grad():
        dense, ours = base.model.get_input_embeddings()(IDS), embedding(IDS)
    assert float((dense - ours).norm() / dense.norm()) < 0.01


def test_an_untied_embedding_stays_dense(base: wb.Variant) -> None:
    child = base.apply(quantize.Int8())
    assert child.model.get_input_embeddings().weight is base.model.get_input_embeddings().weight
    assert child.model.get_output_embeddings().weight.dtype == torch.int8


def test_the_head_is_packed_only_if_wanted(load_tiny: Callable[[str], wb.Variant]) -> None:
    for architecture in ("llama", "qwen3"):
        base = load_tiny(architecture)
        child = base.apply(quantize.Int8(head=False))
        assert child.model.get_output_embeddings().weight is base.model.get_output_embeddings().weight
        assert child.model.get_input_embeddings().weight is base.model.get_input_embeddings().weight
        assert len(layers(child)) == 14


@by_label
def test_quantizing_twice_is_refused(base: wb.Variant, step: wb.Step) -> None:
    child = base.apply(step)
    for again in STEPS:
        with pytest.raises(InvalidInput, match="already quantized"):
            child.apply(again)


def test_a_request_step_on_top_keeps_the_packed_model(base: wb.Variant) -> None:
    child = base.apply(quantize.Int8())
    assert child.apply(prompt.System(text="Hm.")).model is child.model


def test_norms_and_embeddings_are_shared_with_the_parent(base: wb.Variant) -> None:
    child = base.apply(quantize.NF4())
    ours, theirs = dict(base.model.named_parameters()), dict(child.model.named_parameters())
    assert theirs
    assert all(theirs[name] is ours[name] for name in theirs)
    assert set(ours) - set(theirs) == {f"{path}.weight" for path in layers(child)}


def test_smaller_blocks_are_more_exact(base: wb.Variant) -> None:
    def off(step: wb.Step) -> float:
        child = base.apply(step)
        return sum(float((packed.dense_weight(base.model.get_submodule(path)) - layer.dequantize()).norm())
                   for path, layer in layers(child).items())  # fmt: skip

    errors = [off(quantize.NF4(block_size=size)) for size in (32, 64, 128)]
    assert errors == sorted(errors)
    assert off(quantize.FP4()) > off(quantize.NF4())


@pytest.mark.model
def test_the_embedded_model_still_answers_in_int8(smollm: wb.Variant) -> None:
    for step in (quantize.Int8(), quantize.Int8Dynamic()):
        child = smollm.apply(step)
        assert child.total_bytes < 0.27 * smollm.total_bytes
        assert "lobster" in child.generate("What is a lobster?", max_new_tokens=12).text.lower()
        child.close()
