"""Leaving out blocks: what is left computes what a loop over the kept blocks computes, and is a plain model."""

from collections.abc import Callable

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM, DeepseekV3Config, Gemma2Config, GPT2Config, LlamaConfig, PreTrainedConfig

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.models.blocks import conform, decoder_blocks
from workbench.steps import quantize
from workbench.steps.prune.depth import DropBlocks, without

IDS = torch.arange(3, 40)[None]
SMALL = {
    "vocab_size": 400,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture
def variant_of(tokenizer) -> Callable[[PreTrainedConfig], wb.Variant]:
    """A variant of a random model of a configuration."""

    def build(config: PreTrainedConfig) -> wb.Variant:
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        return wb.Variant(model=model, tokenizer=tokenizer, name="base", source="random")

    return build


@pytest.fixture
def deep(variant_of) -> wb.Variant:
    """A Llama of six blocks."""
    return variant_of(LlamaConfig(**SMALL, num_hidden_layers=6, num_key_value_heads=2))


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_which_blocks_stay() -> None:
    assert without(5, 2, (0.5, 0.1, 0.3, 0.1, 0.9)) == [0, 2, 4]
    assert without(5, 2) == [0, 1, 4], "the final block stays"
    assert without(5, 4) == [4]
    assert without(2, 1) == [1]
    assert without(3, 0, (0.1, 0.2, 0.3)) == [0, 1, 2]


def test_equals_a_loop_over_the_kept_blocks(deep, tiny_text) -> None:
    step = DropBlocks(share=0.5)
    ranking = step.ranking(deep, tiny_text)
    kept = ranking.block[~ranking.dropped].tolist()
    assert len(kept) == 3
    assert ranking.influence[ranking.dropped].max() < ranking.influence[~ranking.dropped].min()
    child = deep.apply(step, tiny_text)
    whole = deep.model.model
    with torch.no_grad():
        hidden = whole.embed_tokens(IDS)
        angles = whole.rotary_emb(hidden, torch.arange(IDS.shape[1])[None])
        for index in kept:
            hidden = whole.layers[index](hidden, position_embeddings=angles)
        assert torch.equal(child.model(IDS).logits, deep.model.lm_head(whole.norm(hidden)))


def test_influence_is_what_the_paper_defines(deep, tiny_text) -> None:
    windows = torch.tensor(tiny_text.windows(deep.tokenizer, "calibration"))
    with torch.no_grad():
        states = deep.model(windows, output_hidden_states=True).hidden_states
    ranking = DropBlocks().ranking(deep, tiny_text)
    for index in range(5):  # the sixth state has passed the final norm
        cosine = torch.cosine_similarity(states[index], states[index + 1], dim=-1).mean()
        assert ranking.influence[index] == pytest.approx(1 - float(cosine), abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_plain_smaller_model_is_left(architecture, load_tiny, tmp_path) -> None:
    base = load_tiny(architecture)
    child = base.apply(
        DropBlocks(share=0.5, order="last"), wb.Text(name="unused", text="a", window=2, calibration=0, test=1)
    )
    assert len(decoder_blocks(child.model)[1]) == child.model.config.num_hidden_layers == 1
    assert child.owned_bytes == 0, "what stays is shared"
    assert child.total_bytes < base.total_bytes
    assert child.total_bytes == DropBlocks(share=0.5, order="last").forecast(base).weight_bytes
    assert shapes(AutoModelForCausalLM.from_config(child.model.config)) == shapes(child.model)
    with torch.no_grad():
        whole = child.model(IDS, use_cache=False).logits[:, -1]
        start = child.model(IDS[:, :-1], use_cache=True)
        step = child.model(IDS[:, -1:], past_key_values=start.past_key_values).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-3)
    again = wb.load(child.save(tmp_path / "export"), device="cpu")
    with torch.no_grad():
        assert torch.equal(again.model(IDS).logits, child.model(IDS).logits)


def test_what_differs_between_blocks_goes_with_them(variant_of, tiny_text, tmp_path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    config = Gemma2Config(**SMALL, num_hidden_layers=6, num_key_value_heads=2, head_dim=16, layer_types=kinds)
    base = variant_of(config)
    child = base.apply(DropBlocks(share=0.34, order="last"), tiny_text)  # blocks 3 and 4
    assert child.model.config.layer_types == [kinds[index] for index in (0, 1, 2, 5)]
    assert [block.self_attn.layer_idx for block in child.model.model.layers] == [0, 1, 2, 3]
    assert [block.self_attn.layer_idx for block in base.model.model.layers] == list(range(6))
    assert base.model.config.num_hidden_layers == len(base.model.config.layer_types) == 6
    assert child.generate("Rain", max_new_tokens=3).token_ids


@pytest.mark.parametrize(("share", "left"), [(0.01, 5), (0.25, 4), (0.26, 4), (0.5, 3), (0.9, 1)])
def test_the_share_is_rounded_to_whole_blocks(share, left, deep, tiny_text) -> None:
    child = deep.apply(DropBlocks(share=share, order="last"), tiny_text)
    assert child.model.config.num_hidden_layers == left
    assert DropBlocks(share=share).forecast(deep).weight_bytes == child.total_bytes


def test_zero_is_the_identity(deep, tiny_text) -> None:
    child = deep.apply(DropBlocks(share=0.0), tiny_text)
    assert child.owned_bytes == 0
    assert torch.equal(child.model(IDS).logits, deep.model(IDS).logits)
    assert DropBlocks(share=0.0).forecast(deep).seconds == 0.0


def test_packed_blocks_can_be_dropped_but_not_ranked(deep, tiny_text) -> None:
    packed = deep.apply(quantize.Int8())
    child = packed.apply(DropBlocks(share=0.5, order="last"), tiny_text)
    assert child.owned_bytes == 0
    with torch.no_grad():
        assert torch.isfinite(child.model(IDS).logits).all()
    with pytest.raises(InvalidInput, match="dense parent"):
        packed.apply(DropBlocks(share=0.5), tiny_text)


def test_the_last_block_is_refused(variant_of, tiny_text) -> None:
    single = variant_of(LlamaConfig(**SMALL, num_hidden_layers=1))
    with pytest.raises(InvalidInput, match="single decoder block"):
        single.apply(DropBlocks(), tiny_text)


def test_a_block_that_depends_on_its_place_is_refused(variant_of, tiny_text) -> None:
    config = GPT2Config(vocab_size=400, n_embd=64, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True)
    config.bos_token_id = config.eos_token_id = 1
    with pytest.raises(InvalidInput, match="'scaling'"):
        variant_of(config).apply(DropBlocks(share=0.5, order="last"), tiny_text)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_was_not_cut_conforms(architecture, load_tiny) -> None:
    conform(load_tiny(architecture).model, only=())


@pytest.mark.model
def test_the_embedded_model_without_a_tenth_of_its_blocks(smollm) -> None:
    text = wb.read_text("data/prose", window=64, calibration=4, test=2)
    child = smollm.apply(DropBlocks(share=0.1), text)
    assert child.model.config.num_hidden_layers == 27
    assert "lobster" in child.generate("What is a lobster?", max_new_tokens=12).text


def test_blocks_whose_kind_follows_from_their_place_are_not_moved(tokenizer, tmp_path) -> None:
    config = DeepseekV3Config(
        **SMALL | {"vocab_size": len(tokenizer)}, num_key_value_heads=4, num_hidden_layers=4, n_routed_experts=4,
        num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=32, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, first_k_dense_replace=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense_first")
    tokenizer.save_pretrained(tmp_path / "dense_first")
    base = wb.load(tmp_path / "dense_first", device="cpu", dtype="float32")
    text = wb.Text(name="t", text="One two three four five six seven. " * 40, window=16, calibration=2, test=2)
    with pytest.raises(InvalidInput, match="derives the kind of a block from its place"):
        base.apply(DropBlocks(share=0.5, order="last"), text)  # the second dense block would become a mixture
    made = base.apply(DropBlocks(share=0.25, order="last"), text)
    again = wb.load(made.save(tmp_path / "made"))
    assert torch.equal(again.model(IDS % 200).logits, made.model(IDS % 200).logits)
