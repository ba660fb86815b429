"""Variants as GGUF files: read back by the gguf package, by plain transformers, and by our own loader."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from conftest import CONTEXT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.models.interchange import gguf as writing
from workbench.models.packed import Packed, dense_weight
from workbench.steps import finetune, prune, quantize

GROUPS = {"group_size": 32, "bits": 4}


def held(file: Path) -> dict[str, SimpleNamespace]:
    """Every tensor of a file, unpacked by the gguf package, and the name of its kind."""
    found = {}
    for each in gguf.GGUFReader(str(file)).tensors:
        values = gguf.dequantize(each.data, each.tensor_type)
        found[each.name] = SimpleNamespace(kind=each.tensor_type.name, values=torch.from_numpy(values.copy()))
    return found


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (quantize.RTN(symmetric=True, **GROUPS), "Q4_0"),
        (quantize.RTN(symmetric=True, bits=3, group_size=64), "Q4_0"),
        (quantize.RTN(symmetric=True, bits=8, group_size=64), "Q8_0"),
        (quantize.Int8(), "Q8_0"),
        (quantize.Int8Dynamic(), "Q8_0"),
    ],
    ids=repr,
)
def test_codes_go_over_as_they_are(step: wb.Step, kind: str, base: wb.Variant, tmp_path: Path) -> None:
    variant = base.apply(step)
    file = held(variant.save(tmp_path / "a.gguf"))
    for path, name in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        layer = variant.model.get_submodule(f"model.layers.1.{path}")
        assert isinstance(layer, Packed)
        assert file[f"blk.1.{name}.weight"].kind == kind
        assert torch.equal(file[f"blk.1.{name}.weight"].values, layer.dequantize())
    assert torch.equal(file["blk.0.attn_norm.weight"].values, variant.model.model.layers[0].input_layernorm.weight)


def test_zero_points_keep_their_codes(base: wb.Variant, tmp_path: Path) -> None:
    variant = base.apply(quantize.RTN(symmetric=False, **GROUPS))
    layer = variant.model.get_submodule("model.layers.0.mlp.up_proj")
    path = variant.save(tmp_path / "a.gguf")
    tensor = next(each for each in gguf.GGUFReader(str(path)).tensors if each.name == "blk.0.ffn_up.weight")
    assert tensor.tensor_type.name == "Q4_1"
    blocks = torch.from_numpy(tensor.data.copy()).view(layer.out_features, -1, 20)[..., 4:]
    codes = torch.cat([blocks & 15, blocks >> 4], dim=-1).flatten(1)
    assert torch.equal(codes, layer.codes())
    off = (held(path)["blk.0.ffn_up.weight"].values - layer.dequantize()).abs()
    assert float(off.max()) <= float(layer.scale.max()) * 2**-7  # the lowest value of a group, in float16


def test_what_gguf_has_no_codes_for_is_rounded_once_and_said(base: wb.Variant, tmp_path: Path) -> None:
    variant = base.apply(quantize.NF4())
    notes = writing.save(tmp_path / "a.gguf", variant.model, variant.tokenizer, "a")
    layer = variant.model.get_submodule("model.layers.0.mlp.up_proj")
    found = held(tmp_path / "a.gguf")["blk.0.ffn_up.weight"]
    assert found.kind == "Q8_0"
    assert torch.equal(found.values, _quantized(layer.dequantize(), gguf.GGMLQuantizationType.Q8_0))
    assert notes == ("In the file are 14 layers rounded once more, to Q8_0, for GGUF has no such codes.",)


def _quantized(weight: torch.Tensor, kind: gguf.GGMLQuantizationType) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))


def test_a_scale_beyond_float16_leaves_the_layer_dense(base: wb.Variant, tmp_path: Path) -> None:
    layer = base.model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight * 1e-9, requires_grad=False)
    variant = base.apply(quantize.Int8())
    found = held(variant.save(tmp_path / "a.gguf"))["blk.0.ffn_up.weight"]
    assert found.kind == "F32"
    assert torch.equal(found.values, variant.model.get_submodule("model.layers.0.mlp.up_proj").dequantize())


def test_an_adapter_is_fused(base: wb.Variant, tiny_task: wb.Task, tmp_path: Path) -> None:
    tuned = base.apply(finetune.LoRA(learning_rate=0.01), tiny_task)
    file = held(tuned.save(tmp_path / "a.gguf"))
    layer = tuned.model.get_submodule("model.layers.0.self_attn.v_proj")
    assert torch.equal(file["blk.0.attn_v.weight"].values, dense_weight(layer))
    assert not torch.equal(dense_weight(layer), layer.base_layer.weight)


def _readable(tokenizer) -> dict:
    """Configurations of sizes that transformers does not read from a file, as it assumes them."""
    common = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    common |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    common |= {"intermediate_size": 128, "max_position_embeddings": CONTEXT}
    return {
        "llama": LlamaConfig(**common, tie_word_embeddings=False),
        "tied": LlamaConfig(**common, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**common, head_dim=128, tie_word_embeddings=False),
    }


@pytest.mark.parametrize("kind", ["llama", "tied", "qwen3"])
def test_plain_transformers_reads_the_same_model(kind: str, tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(_readable(tokenizer)[kind]).eval()
    writing.write(tmp_path / "a.gguf", model, tokenizer, "a")
    ids = torch.arange(3, 40)[None]
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    text = "What is a lobster? 猫 0 12 <|im_start|>naïve"
    assert words(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert words.chat_template == tokenizer.chat_template
    assert (words.bos_token, words.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)


def test_load_reads_what_save_wrote(
    base: wb.Variant, tiny_text: wb.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    pruned = base.apply(prune.Width(mlp=0.5), tiny_text)
    again = wb.load(pruned.save(tmp_path / "a.gguf"), device="cpu")
    assert again.generate("Rain", max_new_tokens=6).token_ids == pruned.generate("Rain", max_new_tokens=6).token_ids


def test_a_file_says_itself_what_was_rounded(base: wb.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    again = wb.load(base.apply(quantize.NF4()).save(tmp_path / "a.gguf"), device="cpu")
    assert "14 layers rounded once more, to Q8_0" in again.notes[0]


@pytest.mark.parametrize("text", ["What is a lobster?", "naïve cafés: 猫 🦞 12 345", "  two\n\n three", "I've 'told"])
def test_llama_cpp_cuts_a_text_into_the_same_tokens(text: str, base: wb.Variant, tmp_path: Path) -> None:
    from workbench.runtime.llama_library import Loaded, _calls

    loaded, calls = Loaded(base.save(tmp_path / "a.gguf")), _calls()
    calls.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    vocabulary = ctypes.c_void_p(calls.llama_model_get_vocab(loaded.pointer))
    found, raw = (ctypes.c_int32 * 200)(), text.encode()
    count = calls.llama_tokenize(vocabulary, raw, len(raw), found, 200, ctypes.c_bool(True), ctypes.c_bool(False))
    assert list(found)[:count] == base.tokenizer(text)["input_ids"]


def test_an_unknown_architecture_is_refused_before_anything_is_written(load_tiny, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="OPTForCausalLM cannot be written as GGUF"):
        load_tiny("opt").save(tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_stays(base: wb.Variant, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF of somebody else")
    with pytest.raises(InvalidInput, match="overwrite=True"):
        base.save(path)
    assert path.read_bytes() == b"GGUF of somebody else"
    base.save(path, overwrite=True)
    base.save(path)  # its own it replaces


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_sentence(base: wb.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr("workbench.core.files.sibling", lambda path: tmp_path / "full")
    with pytest.raises(wb.WorkbenchError, match=r"Could not write .*No space left"):
        base.save(tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
