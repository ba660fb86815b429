"""Models that are not loaded: their sizes from the headers, and headers that lie."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.models.headers import read_headers
from workbench.steps import quantize


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "opt"])
def test_a_folder_says_what_loading_takes(
    folders: dict[str, Path], load_tiny: Callable[[str], wb.Variant], architecture: str
) -> None:
    found, variant = read_headers(folders[architecture]), load_tiny(architecture)
    weights = sum(each.numel() for each in variant.model.parameters())
    assert found.weights == weights
    assert found.loaded(4) == 4 * weights
    assert found.loaded(2) == 2 * weights
    assert found.cached == {"llama": 2 * 2 * 2 * 16, "qwen3": 2 * 2 * 2 * 16}.get(architecture, 2 * 2 * 4 * 16)


def test_exports_of_packed_and_dense_variants(base: wb.Variant, tmp_path: Path) -> None:
    dense = read_headers(base.save(tmp_path / "dense"))
    assert not dense.packed
    assert dense.loaded(4) == sum(4 * each.numel() for each in base.model.parameters())
    small = base.apply(quantize.RTN())
    packed = read_headers(small.save(tmp_path / "packed"))
    assert packed.packed
    assert packed.loaded(4) == pytest.approx(small.total_bytes, rel=0.2)


def test_shards_are_added_up(folders: dict[str, Path], tmp_path: Path, base: wb.Variant) -> None:
    base.model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_headers(tmp_path).weights == read_headers(folders["llama"]).weights
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(InvalidInput, match="has no file"):
        read_headers(tmp_path)


def place(folder: Path, data: bytes) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(data)
    return folder


def header(about: object, body: bytes = b"") -> bytes:
    text = json.dumps(about).encode()
    return struct.pack("<Q", len(text)) + text + body


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "empty": b"",
    "cut off": b"\1\0",
    "longer than the file": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"!!!!",
    "a list": header([1, 2]),
    "nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "no shape": header({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "huge": header({"w": TENSOR | {"shape": [1 << 40, 1 << 40], "data_offsets": [0, 1 << 62]}}),
    "negative": header({"w": TENSOR | {"shape": [-2, -1]}}, bytes(8)),
    "many dims": header({"w": TENSOR | {"shape": [1] * 1000}}, bytes(8)),
    "outside": header({"w": TENSOR}),
    "another size": header({"w": TENSOR | {"shape": [3]}}, bytes(8)),
    "unknown": header({"w": TENSOR | {"dtype": "F31"}}, bytes(8)),
    "floats": header({"w": TENSOR | {"shape": [2.0]}}, bytes(8)),
}


@pytest.mark.parametrize("name", BAD)
def test_headers_that_lie_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="damaged") as refused:
        read_headers(place(tmp_path, BAD[name]))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        read_headers(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"no \.safetensors file"):
        read_headers(tmp_path)
    for missing in (tmp_path / "nowhere", "nobody/nothing", "a.gguf"):
        with pytest.raises(NotAvailable, match="not on this machine"):
            read_headers(missing)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../etc/passwd"}}')
    with pytest.raises(InvalidInput):
        read_headers(tmp_path)


def test_absurd_configurations_say_nothing(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4)}, tmp_path / "model.safetensors")
    for absurd in (
        {"num_hidden_layers": 1 << 70},
        {"hidden_size": "64", "num_attention_heads": 0},
        {"text_config": []},
    ):
        (tmp_path / "config.json").write_text(json.dumps(absurd))
        assert read_headers(tmp_path).cached == 0


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ünï"])
    writer.add_array("scores", [0.5, 1.5])
    writer.add_float32("general.something", 1.0)
    writer.add_tensor("w", torch.zeros(32, 64).numpy())
    writer.add_tensor("v", torch.zeros(64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file(gguf_file: Path) -> None:
    found = read_headers(gguf_file)
    assert found.weights == 32 * 64 + 64
    assert found.loaded(4) == 4 * found.weights
    assert found.cached == 2 * 2 * 2 * 16


def test_a_gguf_file_cut_off_anywhere_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    data = gguf_file.read_bytes()
    for length in (0, 3, 10, 24, 40, 100, 200, 300):
        part = tmp_path / "part.gguf"
        part.write_bytes(data[:length])
        with pytest.raises(InvalidInput, match="damaged"):
            read_headers(part)


@pytest.mark.parametrize("at", range(4, 24))
def test_a_gguf_header_with_absurd_counts_is_refused(at: int, gguf_file: Path) -> None:
    data = bytearray(gguf_file.read_bytes())
    data[at] = 0xFF
    gguf_file.write_bytes(bytes(data))
    with pytest.raises(InvalidInput, match="damaged"):
        read_headers(gguf_file)
