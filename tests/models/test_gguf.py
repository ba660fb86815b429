"""Models in a .gguf file: a tiny one, written by the library of llama.cpp itself."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import workbench as wb
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.core.progress import Progress
from workbench.models import gguf as reading

KIND = gguf.GGMLQuantizationType.Q8_0
NAMES = {"embed_tokens": "token_embd", "layers": "blk", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
         "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "norm": "output_norm",
         "lm_head": "output"}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The tiny Llama in 8 bits."""
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    config = json.loads((folders["llama"] / "config.json").read_text())
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, tensor in load_file(folders["llama"] / "model.safetensors").items():
        parts = [part for part in name.split(".") if part not in ("model", "self_attn", "mlp")]
        place = ".".join(NAMES.get(part, part) for part in parts)
        if tensor.ndim == 2:
            codes = gguf.quants.quantize(_in_order(name, tensor, config).numpy(), KIND)
            writer.add_tensor(place, codes, raw_dtype=KIND)
        else:
            writer.add_tensor(place, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


def _in_order(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Rows as llama.cpp turns them: of a head, one of each half in turn."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    count = next((config[size] for part, size in heads.items() if part in name), 0)
    if not count:
        return tensor
    return tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()


def logits(variant: wb.Variant) -> torch.Tensor:
    with torch.no_grad():
        return variant.model(torch.arange(3, 40)[None]).logits


def test_it_is_unpacked_once_and_said_so(file: Path, load_tiny, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    told: list[str] = []
    progress = Progress(lambda each: told.append(each.label))
    first = wb.load(file, device="cpu", dtype="float32", progress=progress)
    assert "tiny.gguf" in told[0]
    assert capfd.readouterr() == ("", "")  # no bar of transformers
    assert first.name == "tiny"
    assert "Q8_0" in first.notes[0]
    base = load_tiny("llama")
    assert (logits(first) - logits(base)).norm() < 0.05 * logits(base).norm()
    monkeypatch.setattr(reading, "convert", None)
    second = wb.load(str(file), device="cpu", dtype="float32")
    assert torch.equal(logits(second), logits(first))
    assert (second.name, second.notes) == (first.name, first.notes)
    assert second.encode("How many seats?") == first.encode("How many seats?")


def test_the_cache_knows_a_file_by_its_content(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wb.load(file, device="cpu", dtype="float32")
    other = file.rename(tmp_path / "moved.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(reading, "convert", None)
        assert wb.load(other, device="cpu", dtype="float32").name == "moved"
    other.write_bytes(other.read_bytes()[:-64])
    with pytest.raises(InvalidInput, match=r"moved\.gguf"):
        wb.load(other, device="cpu", dtype="float32")


def test_without_room_for_a_cache_it_is_loaded_all_the_same(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert wb.load(file, device="cpu", dtype="float32").notes


def test_a_missing_library_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NotAvailable, match="pip install gguf"):
        wb.load(file, device="cpu")
