"""Weights kept elsewhere: the same answers, the parent untouched, and what goes wrong with a disk."""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.runtime import offload
from workbench.steps import finetune, quantize, runtime

IDS = torch.arange(3, 40)[None]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    return tmp_path / "offloaded"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma"])
def test_weights_on_disk_give_the_same_logits(
    load_tiny: Callable[[str], wb.Variant], folder: Path, architecture: str
) -> None:
    base = load_tiny(architecture)
    before = sharing.storages(base.model)
    made = base.apply(runtime.Offload())
    assert torch.equal(logits(made.model), logits(base.model))
    assert sharing.storages(base.model) == before
    moved = offload.bytes_elsewhere(made.model)
    assert moved == runtime.Offload().forecast(base).owned_bytes == made.owned_bytes > 0
    assert not offload.bytes_elsewhere(base.model)
    assert list(folder.iterdir()) == []  # a file without a name is forgotten by nobody
    shutil.rmtree(folder)
    assert made.generate("Rain", max_new_tokens=4).token_ids == base.generate("Rain", max_new_tokens=4).token_ids


@pytest.mark.parametrize("step", [quantize.RTN(), quantize.Int8(), quantize.NF4(), quantize.RTN(bits=3)], ids=repr)
def test_packed_layers_go_along(base: wb.Variant, step: wb.Step) -> None:
    small = base.apply(step)
    made = small.apply(runtime.Offload())
    assert torch.equal(logits(made.model), logits(small.model))
    assert offload.bytes_elsewhere(made.model) > 0


def test_steps_go_on_from_there(base: wb.Variant, tiny_task: wb.Task) -> None:
    made = base.apply(runtime.Offload())
    again, straight = (each.apply(quantize.RTN()) for each in (made, base))
    assert torch.equal(logits(again.model), logits(straight.model))
    tuned = made.apply(finetune.LoRA(epochs=0.2), tiny_task)
    assert torch.isfinite(logits(tuned.model)).all()


def test_the_first_bytes_stay(base: wb.Variant) -> None:
    sizes = [size for *_, size in offload.movable(base.model)]
    made = base.apply(runtime.Offload(keep_bytes=sizes[0] + sizes[1]))
    assert offload.bytes_elsewhere(made.model) == sum(sizes[2:])
    with pytest.raises(InvalidInput, match="keep fewer bytes"):
        base.apply(runtime.Offload(keep_bytes=1 << 30))
    with pytest.raises(InvalidInput, match="in CPU memory already"):
        base.apply(runtime.Offload(to="cpu"))


def test_memory_returns_with_the_variant(base: wb.Variant) -> None:
    made = base.apply(runtime.Offload())
    addresses = [key for key in sharing.storages(made.model) if key in offload._mapped]
    assert addresses
    made.close()
    gc.collect()
    assert all(offload._mapped[each].expired() for each in addresses)


def test_a_full_disk_is_one_sentence(base: wb.Variant, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WorkbenchError, match=r"has 1 kB free: make room, or name another folder in WORKBENCH_CACHE\.$"):
        base.apply(runtime.Offload())
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_gone_in_the_middle_is_one_sentence(base: wb.Variant, folder: Path) -> None:
    class Removing(Progress):
        def advance(self, units: int = 1) -> None:
            shutil.rmtree(folder)
            super().advance(units)

    with pytest.raises(WorkbenchError, match=r"could not be kept .* nothing was changed") as refused:
        base.apply(runtime.Offload(), progress=Removing())
    assert "\n" not in str(refused.value)
    assert base.generate("Rain", max_new_tokens=2).token_ids


@pytest.mark.skipif(os.name != "posix", reason="a file that stands where a folder should is refused by POSIX")
def test_a_cache_that_is_no_folder_is_one_sentence(base: wb.Variant, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(WorkbenchError, match="Could not write"):
        base.apply(runtime.Offload())


def test_hooks_bring_each_layer_and_take_it_away(base: wb.Variant, tmp_path: Path) -> None:
    """What a GPU does, with the CPU as the device: between two passes a layer holds no memory."""
    wanted, model = logits(base.model), sharing.share(base.model)
    for _, module, _ in offload.movable(model):
        kept = {name: tensor.clone() for name, tensor in offload._own(module)}
        offload.hook(module, kept, torch.device("cpu"))
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.is_meta
    assert torch.equal(logits(model), wanted)
    assert layer.weight.is_meta
    assert not base.model.model.layers[0].mlp.up_proj.weight.is_meta
    sizes = sum(size for *_, size in offload.movable(base.model))
    assert offload.bytes_elsewhere(model) == sizes
    assert sharing.total_bytes([model]) == base.total_bytes
    shared = sharing.share(model)
    assert sharing.total_bytes([model, shared]) == base.total_bytes  # nothing is copied
    assert torch.equal(logits(shared), wanted)
    shared.model.layers[0].mlp.up_proj.kept_elsewhere.tensors.clear()
    assert torch.equal(logits(model), wanted)  # each copy knows its own tensors
    whole = offload.whole(model)
    assert not any(each.is_meta for each in whole.parameters())
    assert torch.equal(logits(whole), wanted)
    assert layer.weight.is_meta
