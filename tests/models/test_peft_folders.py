"""Folders that peft wrote: the logits that plain peft gives, or a refusal in a sentence."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DeepseekV3Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

import workbench as wb
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.steps import finetune

IDS = torch.tensor([[3, 5, 7, 9, 20, 31, 47, 60, 99, 5]])
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 512,
}  # fmt: skip
Make = Callable[..., tuple[Path, Tensor]]


def lora(**options: Any) -> peft.LoraConfig:
    usual: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    return peft.LoraConfig(task_type="CAUSAL_LM", **usual | options)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def make(folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Make:
    """Writes an adapter that learned something with plain peft; its folder, and the logits that plain peft gives."""

    def make(config: peft.PeftConfig, base: str | Path = "llama", **options: Any) -> tuple[Path, Tensor]:
        place, folder = folders.get(str(base), Path(base)), tmp_path / "adapter"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(place, **options), config)
            torch.manual_seed(3)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place, **options), folder)
            return folder, logits(again.eval())

    return make


@pytest.fixture
def model_of(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[[PreTrainedConfig], Path]:
    """Writes a random model of a configuration."""

    def model_of(config: PreTrainedConfig) -> Path:
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return model_of


def close(found: wb.Variant, wanted: Tensor, most: float = 1e-4) -> None:
    assert (logits(found.model) - wanted).abs().max() < most


def refusal(path: Path, kind: type[Exception] = InvalidInput) -> str:
    with pytest.raises(kind) as caught:
        wb.load(path, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


FIRST = r".*layers\.0\..*q_proj"
LORA: dict[str, tuple[peft.PeftConfig, str]] = {
    "plain": (lora(), "llama"),
    "patterns": (lora(rank_pattern={FIRST: 2}, alpha_pattern={FIRST: 32}), "llama"),
    "root of the rank": (lora(r=3, use_rslora=True), "llama"),
    "dora": (lora(use_dora=True), "llama"),
    "turned": (lora(target_modules=["c_attn"], fan_in_fan_out=True), "gpt2"),
    "biases": (lora(target_modules=["q_proj", "fc2"], bias="all"), "opt"),
    "residual": (lora(init_lora_weights="pissa"), "llama"),
    "saved embedding and head": (lora(modules_to_save=["embed_tokens", "lm_head"]), "llama"),
    "saved embedding, tied": (lora(modules_to_save=["embed_tokens"]), "qwen3"),
    "saved head, tied": (lora(modules_to_save=["embed_tokens", "lm_head"]), "qwen3"),
    "saved norm": (lora(modules_to_save=["norm"]), "llama"),
    "embedding": (lora(target_modules=["embed_tokens", "q_proj"]), "llama"),
    "embedding, tied": (lora(target_modules=["embed_tokens", "q_proj"]), "qwen3"),
    "head, tied": (lora(target_modules=["lm_head", "q_proj"]), "qwen3"),
    "tokens": (lora(trainable_token_indices=[5, 7, 9]), "llama"),
    "tokens, tied": (lora(trainable_token_indices=[5, 7, 9]), "qwen3"),
}


@pytest.mark.parametrize("name", LORA)
def test_lora_is_what_peft_makes_of_it_loaded_saved_and_fused(name: str, make: Make, tmp_path: Path) -> None:
    folder, wanted = make(*LORA[name])
    loaded = wb.load(folder, device="cpu", dtype="float32")
    close(loaded, wanted)
    close(wb.load(loaded.save(tmp_path / "export"), device="cpu"), wanted)
    fused = loaded.apply(finetune.Fuse())
    close(fused, wanted)
    close(wb.load(fused.save(tmp_path / "fused"), device="cpu"), wanted)
    assert (loaded.name, loaded.source) == ("adapter", str(folder))
    assert any("part of the model" in note for note in loaded.notes) == name.startswith(
        ("saved", "embedding", "tokens")
    )


@pytest.mark.parametrize("name", ["patterns", "residual", "embedding, tied", "saved head, tied"])
def test_peft_reads_it_back_from_an_export(name: str, make: Make, tmp_path: Path) -> None:
    folder, wanted = make(*LORA[name])
    export = wb.load(folder, device="cpu", dtype="float32").save(tmp_path / "export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(export)
        assert (logits(peft.PeftModel.from_pretrained(base, export / "adapter").eval()) - wanted).abs().max() < 1e-4


OTHERS: dict[str, peft.PeftConfig] = {
    "IA3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "LOHA": peft.LoHaConfig(r=4, alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "VERA": peft.VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "LN_TUNING": peft.LNTuningConfig(task_type="CAUSAL_LM"),
    "TRAINABLE_TOKENS": peft.TrainableTokensConfig(
        token_indices=[5, 9], target_modules=["embed_tokens"], task_type="CAUSAL_LM"
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_changes_of_weights_are_added_in(kind: str, make: Make, tmp_path: Path) -> None:
    folder, wanted = make(OTHERS[kind])
    loaded = wb.load(folder, device="cpu", dtype="float32")
    close(loaded, wanted)
    assert any(kind in note for note in loaded.notes)
    close(wb.load(loaded.save(tmp_path / "export"), device="cpu"), wanted)


@pytest.mark.parametrize("kind", [peft.PrefixTuningConfig, peft.PromptTuningConfig, peft.PromptEncoderConfig])
def test_prompts_that_were_learned_are_refused(kind: type[peft.PeftConfig], make: Make) -> None:
    folder, _ = make(kind(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    assert "only peft" in refusal(folder)


def test_experts_that_were_trained_become_part_of_the_model(make: Make, model_of, tokenizer, tmp_path: Path) -> None:
    sizes = SIZES | {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    base = model_of(Qwen3MoeConfig(vocab_size=len(tokenizer), **sizes))
    folder, wanted = make(lora(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]), base)
    loaded = wb.load(folder, device="cpu", dtype="float32")
    close(loaded, wanted)
    close(wb.load(loaded.save(tmp_path / "export"), device="cpu"), wanted)


def test_layers_named_like_experts_are_layers(model_of, tokenizer, tiny_task: wb.Task, tmp_path: Path) -> None:
    """Peft takes the shared expert of a DeepSeek for the routed ones, which have the same names."""
    more = {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "v_head_dim": 16,
    }
    more |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "first_k_dense_replace": 1, "moe_intermediate_size": 64}
    sizes = SIZES | more | {"num_key_value_heads": 4, "num_experts_per_tok": 2}
    base = wb.load(model_of(DeepseekV3Config(vocab_size=len(tokenizer), **sizes)), device="cpu", dtype="float32")
    tuned = base.apply(finetune.LoRA(rank=2, epochs=4.0, learning_rate=1e-2), tiny_task)
    saved = tuned.save(tmp_path / "tuned")
    assert torch.equal(logits(wb.load(saved, device="cpu").model), logits(tuned.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved), saved / "adapter")
    close(tuned, logits(theirs.eval()))
    assert "experts" not in {type(each).__name__ for each in tuned.model.modules()}
    assert not any("experts.lora" in name for name, _ in tuned.model.named_parameters())


def test_tokens_that_were_added_have_their_rows(folders, tokenizer, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, lora())
        adapted.eval().save_pretrained(tmp_path / "adapter")
    loaded = wb.load(tmp_path / "adapter", device="cpu", dtype="float32")
    close(loaded, logits(adapted))
    assert loaded.encode("It has twelve seats.") == wb.load(folders["llama"]).encode("It has twelve seats.")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_a_quantized_model_stays_on_it(folders, tokenizer, make: Make, tmp_path: Path) -> None:
    base = tmp_path / "quantized"
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=four).save_pretrained(base)
    tokenizer.save_pretrained(base)
    folder, wanted = make(lora(), base)
    close(wb.load(folder, device="cpu", dtype="float32"), wanted, most=0.2)  # kernels round to 16 bits
    folder, _ = make(lora(use_dora=True), base)
    assert "dense" in refusal(folder)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_its_model_is_looked_for_beside_it(make: Make, folders, tmp_path: Path) -> None:
    folder, wanted = make(lora())
    (tmp_path / "beside").symlink_to(folders["llama"])
    edit(folder, base_model_name_or_path="../beside")
    close(wb.load(folder, device="cpu", dtype="float32"), wanted)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    close(wb.load(folder, device="cpu", dtype="float32"), wanted)
    edit(folder, base_model_name_or_path="../no-model-of-this-name")
    assert "'../no-model-of-this-name'" in refusal(folder, NotAvailable)
    edit(folder, base_model_name_or_path=None)
    assert "does not say" in refusal(folder)
    (folder / "adapter_config.json").write_text("{")
    assert "damaged" in refusal(folder)


def test_half_an_adapter_is_refused(make: Make, model_of, tokenizer) -> None:
    folder, _ = make(lora())
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    name = sorted(whole)[0]
    save_file({each: tensor for each, tensor in whole.items() if each != name}, file)
    assert "lacks" in refusal(folder)
    save_file(whole | {name: whole[name] * torch.nan}, file)
    assert "NaN" in refusal(folder)
    save_file(whole, file)
    few = SIZES | {"num_hidden_layers": 1, "intermediate_size": 128}
    edit(folder, base_model_name_or_path=str(model_of(LlamaConfig(vocab_size=len(tokenizer), **few))))
    assert "another model" in refusal(folder)
    edit(folder, base_model_name_or_path=str(model_of(LlamaConfig(vocab_size=len(tokenizer), **SIZES))))
    assert "size mismatch" in refusal(folder)
    torch.save(whole, folder / "adapter_model.bin")
    file.unlink()
    assert "other files are not read" in refusal(folder)
