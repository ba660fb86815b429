"""Mixtures of experts: what steps do not reach is said."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedTokenizerFast

import workbench as wb
from workbench.models.blocks import decoder_blocks, experts_note
from workbench.steps import distil, finetune, prune, quantize
from workbench.training.step import curve


@pytest.fixture
def mixture(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> wb.Variant:
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    return wb.load(tmp_path / "mixture", device="cpu", dtype="float32")


def test_the_share_is_that_of_the_blocks(mixture: wb.Variant) -> None:
    _, blocks = decoder_blocks(mixture.model)
    experts = sum(each.numel() for name, each in blocks.named_parameters() if ".experts." in name)
    share = experts / sum(each.numel() for each in blocks.parameters())
    assert experts_note(mixture.model, "RTN")[0].startswith(f"{share:.0%} of the weights in the blocks are experts")


STEPS = [
    quantize.RTN(), quantize.NF4(), quantize.GPTQ(), quantize.Budget(), prune.Magnitude(), prune.Wanda(),
    finetune.LoRA(epochs=1.0), finetune.QLoRA(epochs=1.0, store="Int8"), distil.SequenceLevel(epochs=1.0, rank=2),
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.full_name())
def test_steps_say_what_they_left_alone(step: wb.Step, mixture: wb.Variant, tiny_task: wb.Task) -> None:
    start = (
        mixture.apply(prune.DropBlocks(share=0.5, order="last"), tiny_task) if step.family() == "distil" else mixture
    )
    made = start.apply(step, tiny_task)
    (note,) = [each for each in made.notes if "experts" in each]
    assert note.endswith(f"{step.label} left them alone.")
    if step.family() in ("finetune", "distil"):
        assert note in curve(made).notes


def test_a_dense_model_has_no_such_note(load_tiny) -> None:
    for architecture in ("llama", "gpt2", "gemma"):
        base = load_tiny(architecture)
        assert base.apply(quantize.RTN()).notes == ()
        assert experts_note(base.model, "RTN") == ()
