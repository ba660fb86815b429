"""Checkpoints as others have them: quantized, tied in name alone, of mixed types, of models that also see."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3Config,
    GPT2Config,
    PreTrainedTokenizerFast,
)

import workbench as wb
from workbench.core.errors import InvalidInput, NotAvailable, WorkbenchError
from workbench.models import export, pretrained, sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import (
    Bits4Linear,
    FP8Linear,
    GroupLinear,
    Int8DynamicLinear,
    Int8Linear,
    LLMInt8Linear,
    PackedLinear,
)
from workbench.steps import prune, quantize

IDS = torch.arange(3, 40)[None]


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def plain(folder: Path) -> Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def refusal(source: Any, kind: type[WorkbenchError] = InvalidInput) -> str:
    with pytest.raises(kind) as caught:
        wb.load(source, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def divergence(wanted: Tensor, found: Tensor) -> float:
    mine, other = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((mine.exp() * (mine - other)).sum(-1).mean())


# ---- tied in name alone


@pytest.fixture
def torn(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A model whose configuration says that head and embedding are tied, and whose weights are not."""
    folder = Path(shutil.copytree(folders["qwen3"], tmp_path / "torn"))
    state = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(1)
    state["lm_head.weight"] = torch.randn(state["model.embed_tokens.weight"].shape, generator=draw)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("step", [None, quantize.RTN(bits=8), quantize.NF4(), quantize.Int8()])
def test_a_head_of_its_own_is_kept_whatever_the_configuration_says(step: Any, torn: Path, tmp_path: Path) -> None:
    variant = wb.load(torn, device="cpu", dtype="float32")
    assert torch.equal(logits(variant.model), plain(torn))
    variant = variant if step is None else variant.apply(step)
    saved = variant.save(tmp_path / "saved")
    assert torch.equal(logits(wb.load(saved, device="cpu").model), logits(variant.model))
    assert divergence(logits(variant.model), plain(saved)) < 0.05  # 4 and more between the two heads
    if step is None:
        assert torch.equal(plain(saved), logits(variant.model))


def test_an_older_export_that_says_tied_is_read_as_its_weights_are(torn: Path, tmp_path: Path, monkeypatch) -> None:
    variant = wb.load(torn, device="cpu", dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "settle_tie", lambda model, config: setattr(config, "tie_word_embeddings", True))
        saved = variant.save(tmp_path / "saved")
    assert json.loads((saved / "config.json").read_text())["tie_word_embeddings"]
    assert torch.equal(logits(wb.load(saved, device="cpu").model), logits(variant.model))


def test_a_tied_model_stays_tied(load_tiny, tmp_path: Path) -> None:
    again = wb.load(load_tiny("qwen3").save(tmp_path / "saved"), device="cpu").model
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert again.config.tie_word_embeddings


# ---- of mixed types


@pytest.mark.parametrize("step", [None, quantize.NF4(), quantize.RTN(bits=4, group_size=32)])
def test_an_embedding_in_16_bits_beside_layers_in_32(step: Any, base: wb.Variant, tmp_path: Path) -> None:
    table = base.model.model.embed_tokens
    table.weight = torch.nn.Parameter(table.weight.half(), requires_grad=False)
    variant = base if step is None else base.apply(step)
    saved = variant.save(tmp_path / "saved")
    again = wb.load(saved, device="cpu")
    assert torch.equal(logits(again.model), logits(variant.model))
    assert again.model.model.embed_tokens.weight.dtype == torch.float16
    assert again.model.model.norm.weight.dtype == torch.float32
    assert divergence(logits(variant.model), plain(saved)) < 0.05


# ---- quantized by others


@pytest.fixture
def bits(folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny model as bitsandbytes saves it."""

    def bits(architecture: str, **settings: Any) -> Path:
        config = BitsAndBytesConfig(**settings)
        model = AutoModelForCausalLM.from_pretrained(folders[architecture], quantization_config=config)
        model.save_pretrained(tmp_path / "theirs")
        tokenizer.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    return bits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "kind", "settings"),
    [
        ("llama", Bits4Linear, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ("llama", Bits4Linear, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
        ("opt", Bits4Linear, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
        ("gpt2", Bits4Linear, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ("opt", LLMInt8Linear, {"load_in_8bit": True}),
    ],
    ids=["nf4", "nested", "fp4", "transposed", "int8"],
)
def test_bits_of_bitsandbytes_are_kept(architecture: str, kind: type, settings: dict[str, Any], bits) -> None:
    folder = bits(architecture, **settings)
    variant = wb.load(folder, device="cpu", dtype="float32")
    assert any(isinstance(module, kind) for module in variant.model.modules())
    torch.testing.assert_close(logits(variant.model), plain(folder), rtol=0, atol=0.05)
    again = wb.load(variant.save(folder.parent / "again"), device="cpu")
    assert torch.equal(logits(again.model), logits(variant.model))
    for step in (quantize.RTN(bits=8), quantize.NF4(), prune.Magnitude()):
        with pytest.raises(InvalidInput, match="already quantized"):
            variant.apply(step)


OURS: dict[str, tuple[quantize.RTN | Any, type[PackedLinear]]] = {
    "float8": (quantize.FP8(), FP8Linear),
    "int8": (quantize.Int8(), Int8Linear),
    "int8 and activations": (quantize.Int8Dynamic(), Int8DynamicLinear),
    "4 bits in groups": (quantize.RTN(bits=4, group_size=32), GroupLinear),
    "3 bits, zero points": (quantize.RTN(bits=3, group_size=64, symmetric=False), GroupLinear),
}


@pytest.mark.parametrize("name", OURS)
def test_codes_of_compressed_tensors_are_kept(name: str, base: wb.Variant, tmp_path: Path) -> None:
    """Written by us in the library's layout, which `test_export` compares with the library itself."""
    step, kind = OURS[name]
    variant = base.apply(step)
    folder = variant.save(tmp_path / "theirs")
    for file in folder.glob("workbench.*"):
        file.unlink()
    again = wb.load(folder, device="cpu", dtype="float32")
    modules = dict(again.model.named_modules())
    for path, layer in variant.model.named_modules():
        if isinstance(layer, PackedLinear) and path != "lm_head":  # which is dense in a layout with zero points
            assert type(modules[path]) is kind
            torch.testing.assert_close(modules[path].dequantize(), layer.dequantize(), rtol=1e-6, atol=1e-7)
    assert divergence(logits(again.model), logits(variant.model)) < 0.05
    assert again.notes == ()


def test_float8_in_blocks_is_unpacked(folders: dict[str, Path], tmp_path: Path) -> None:
    """As DeepSeek publishes it: a scale for every 32 by 32 weights."""
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "theirs"))
    theirs, ours = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        theirs[name] = ours[name] = tensor
        if name.endswith("proj.weight"):
            blocks = tensor.view(tensor.shape[0] // 32, 32, -1, 32)
            scale = blocks.abs().amax((1, 3), keepdim=True) / 448
            codes = (blocks / scale).to(torch.float8_e4m3fn)
            theirs[name], theirs[f"{name}_scale_inv"] = codes.view(tensor.shape), scale[:, 0, :, 0].contiguous()
            ours[name] = (codes.float() * scale).view(tensor.shape)
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    variant = wb.load(folder, device="cpu", dtype="float32")
    assert "fp8" in variant.notes[0]
    state = variant.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.items())
    again = wb.load(variant.save(tmp_path / "again"), device="cpu")
    assert again.notes == variant.notes
    assert torch.equal(logits(again.model), logits(variant.model))


@pytest.mark.parametrize("step", [quantize.FP8(), quantize.RTN(bits=4, group_size=32)])
def test_codes_and_scales_that_are_no_numbers_are_named(step: Any, base: wb.Variant, tmp_path: Path) -> None:
    folder = base.apply(step).save(tmp_path / "theirs")
    for file in folder.glob("workbench.*"):
        file.unlink()
    name = "model.layers.1.mlp.up_proj"
    whole = load_file(folder / "model.safetensors")
    for part in {f"{name}.weight_scale", f"{name}.weight"} & whole.keys():
        broken = whole[part].float()
        broken[3] = torch.nan
        tensors = whole | {part: broken.to(whole[part].dtype)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert name in refusal(folder)


def change(folder: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    alter(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def test_what_cannot_be_read_is_refused_by_its_name(base: wb.Variant, tmp_path: Path) -> None:
    folder = base.apply(quantize.RTN(bits=4, group_size=32)).save(tmp_path / "theirs")
    for file in folder.glob("workbench.*"):
        file.unlink()
    tensors = load_file(folder / "model.safetensors")
    change(folder, lambda settings: settings.update(quant_method="gptq"))
    assert "quantized by gptq" in refusal(folder)
    change(folder, lambda settings: settings.update(quant_method="compressed-tensors", format="nvfp4-pack-quantized"))
    assert "nvfp4" in refusal(folder)
    change(
        folder, lambda settings: settings.update(format="pack-quantized", transform_config={"config_groups": {"a": 1}})
    )
    assert "transform_config" in refusal(folder)
    change(folder, lambda settings: settings.pop("transform_config"))
    name = "model.layers.0.mlp.up_proj"
    odd = tensors | {f"{name}.weight_g_idx": torch.arange(64).flip(0) // 32}
    save_file(odd, folder / "model.safetensors", metadata={"format": "pt"})
    assert name in refusal(folder)
    save_file(
        {each: tensor for each, tensor in tensors.items() if not each.startswith(name)}, folder / "model.safetensors"
    )
    assert name in refusal(folder)


def test_scales_that_bfloat16_rounds_are_named(base: wb.Variant, tmp_path: Path) -> None:
    folder = base.apply(quantize.RTN(bits=4, group_size=32)).save(tmp_path / "theirs")
    for file in folder.glob("workbench.*"):
        file.unlink()
    tensors = load_file(folder / "model.safetensors")
    finer = {name: each * 1.001 if name.endswith("weight_scale") else each for name, each in tensors.items()}
    save_file(finer, folder / "model.safetensors", metadata={"format": "pt"})
    again = wb.load(folder, device="cpu", dtype="float32")
    assert "rounded to bfloat16" in again.notes[0]
    assert divergence(plain(folder), logits(again.model)) < 0.05


# ---- models that also see


@pytest.fixture
def seeing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> wb.Variant:
    """A tiny Gemma 3 with more blocks in its eye than in its language model."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "initializer_range": 0.2,
    }  # fmt: skip
    eye = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
           "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(
        text_config=text,
        vision_config=eye,
        mm_tokens_per_image=4,
        image_token_index=7,
        boi_token_index=8,
        eoi_token_index=9,
    )
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "seeing")
    tokenizer.save_pretrained(tmp_path / "seeing")
    return wb.load(tmp_path / "seeing", device="cpu", dtype="float32")


def test_the_language_model_is_what_counts(seeing: wb.Variant) -> None:
    assert seeing.context_length == 4096
    assert decoder_blocks(seeing.model)[0] == "model.language_model.layers"
    assert seeing.generate("What is a lobster? " * 80, max_new_tokens=1).prompt_tokens > 512


@pytest.mark.parametrize("step", [None, quantize.RTN(bits=4, group_size=32), quantize.NF4(), quantize.Int8()])
def test_it_is_measured_quantized_and_saved(step: Any, seeing: wb.Variant, tiny_text, tmp_path: Path) -> None:
    variant = seeing if step is None else seeing.apply(step)
    changed = [path for path, module in variant.model.named_modules() if isinstance(module, PackedLinear)]
    assert all(path.startswith(("model.language_model.", "lm_head")) for path in changed)
    assert bool(changed) == (step is not None)
    assert wb.measure(variant, tiny_text)["perplexity"].value > 1
    saved = variant.save(tmp_path / "saved")
    assert torch.equal(logits(wb.load(saved, device="cpu").model), logits(variant.model))
    assert divergence(logits(variant.model), plain(saved)) < 0.05


# ---- what is saved can be read


def test_a_model_that_could_not_be_loaded_is_not_saved(base: wb.Variant, tmp_path: Path) -> None:
    folder = base.save(tmp_path / "export")
    before = logits(base.model)
    base.model.config.intermediate_size = 96
    for path in (folder, tmp_path / "new"):
        with pytest.raises(WorkbenchError, match="not saved"):
            base.save(path)
    assert torch.equal(logits(wb.load(folder, device="cpu").model), before)
    assert [each.name for each in tmp_path.iterdir() if "export" in each.name or "new" in each.name] == ["export"]


def test_a_packed_layer_that_comes_back_otherwise_is_not_saved(base: wb.Variant, tmp_path: Path, monkeypatch) -> None:
    variant = base.apply(quantize.NF4())
    write = export.write

    def lossy(model: Any) -> Any:
        made = write(model)
        for name, tensor in made.tensors.items():
            if name.endswith("absmax"):
                made.tensors[name] = tensor * 1.5
        return made

    monkeypatch.setattr(export, "write", lossy)
    with pytest.raises(WorkbenchError, match="not saved"):
        variant.save(tmp_path / "export")
    assert not (tmp_path / "export").exists()


# ---- names and paths


def test_what_looks_like_a_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(pretrained, "read", None)
    starts = ("/no/model", "./model", "../model", "~/no-model", "~nobody-here/model")
    for source in (*starts, "a\\b", "a/b/c", "model.gguf", "task.jsonl", "here/model", Path("model")):
        assert "check the path" in refusal(source, NotAvailable)


def test_a_tilde_is_the_home_folder(base: wb.Variant, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base.save("~/export") == tmp_path / "export"
    assert torch.equal(logits(wb.load("~/export", device="cpu").model), logits(base.model))


def test_a_tokenizer_that_knows_nothing_is_refused(tmp_path: Path) -> None:
    """Transformers makes an empty one where its files are missing."""
    AutoModelForCausalLM.from_config(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    assert "tokenizer" in refusal(tmp_path)
