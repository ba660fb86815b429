"""What is held, and whether something fits, against counts made by hand."""

from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.analysis import memory as module
from workbench.core.errors import InvalidInput, OutOfMemory
from workbench.runtime.room import Room
from workbench.steps import finetune, quantize, runtime
from workbench.training import room as training


def test_who_holds_what(base: wb.Variant) -> None:
    small, moved = base.apply(quantize.RTN()), base.apply(runtime.Offload())
    found = wb.memory()
    held = {each.name: each for each in found.holders}
    assert held[base.name].owned == held[base.name].weights == base.total_bytes
    assert held["RTN"].owned == small.owned_bytes
    assert held["RTN"].shared == small.total_bytes - small.owned_bytes
    assert held["Offload"].elsewhere == moved.owned_bytes
    assert {held[name].token for name in (base.name, "RTN", "Offload")} == {512}
    assert found.known("cpu") == sum(each.owned - each.elsewhere for each in found.holders) + found.statistics
    assert found.slack("cpu") == found.room["cpu"].held - found.known("cpu")
    assert list(found.table().index) == [each.name for each in found.holders]
    assert "kept elsewhere" in repr(found)
    assert found._repr_html_().count("<tr>") == 1 + len(found.holders)


def test_names_are_escaped(base: wb.Variant) -> None:
    kept = base.under("<img src=x>")
    assert "<img" not in wb.memory()._repr_html_()
    assert kept.name in repr(wb.memory())


def test_an_answer_by_hand(base: wb.Variant) -> None:
    found = wb.fits(base, tokens=100, batch=4)
    assert found.parts["keys and values"] == 400 * 512
    assert found.parts["states"] == 400 * (6 * 64 + 3 * 128) * 4
    assert found
    assert repr(found).startswith(f"Fits: '{base.name}' with 4 x 100 tokens needs")
    absurd = wb.fits(base, tokens=1 << 40)
    assert not absurd
    assert "too few" in repr(absurd)
    assert wb.fits(base).needed == 0


def test_a_step_and_a_training(base: wb.Variant) -> None:
    both = wb.fits(base, step=quantize.RTN(), tokens=10).parts
    assert both["weights"] == quantize.RTN().forecast(base).owned_bytes
    assert both["keys and values"] == 10 * 512
    found = wb.fits(base, step=finetune.Full(batch_size=4, accumulation=2), tokens=10).parts
    weights = base.total_bytes
    assert {name: found[name] for name in ("weights", "gradients", "optimizer", "best weights")} == {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "best weights": weights,
    }
    # Two rows of ten tokens: what two blocks keep for the way back, and the logits and their gradient.
    logits = 2 * 4 * base.model.config.vocab_size
    assert found["states"] == 20 * (2 * 4 * (10 * 64 + 4 * 128) + logits)
    adapter = finetune.LoRA(rank=4).forecast(base).owned_bytes
    lora = wb.fits(base, step=finetune.LoRA(rank=4)).parts
    assert lora["optimizer"] == 2 * adapter
    packed = wb.fits(base, step=finetune.QLoRA(rank=4)).parts
    assert packed["optimizer"] == 2 * adapter < 2 * packed["weights"]
    less = wb.fits(base, step=finetune.Full(checkpointing=True)).parts["states"]
    assert less < wb.fits(base, step=finetune.Full()).parts["states"]


def test_a_model_that_is_not_loaded(folders: dict[str, Path], base: wb.Variant) -> None:
    weights = sum(each.numel() for each in base.model.parameters())
    found = wb.fits(folders["llama"], tokens=10, batch=2, device="cpu", dtype=torch.bfloat16)
    assert found.parts == {"weights": 2 * weights, "keys and values": 20 * 128 * 2}
    assert found.device == "cpu"
    with pytest.raises(InvalidInput, match="load the model first"):
        wb.fits(folders["llama"], step=quantize.RTN())
    for wrong in ({"tokens": -1}, {"batch": 0}, {"tokens": 1 << 60}):
        with pytest.raises(InvalidInput, match="fits"):
            wb.fits(base, **wrong)


def test_what_does_not_fit_says_how_much(base: wb.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: Room(total=10_000_000, free=1_000_000, held=0))
    found = wb.fits(base, tokens=10_000)
    assert not found
    assert "cpu has 1 MB free of 10 MB, " in repr(found)


def test_a_training_that_cannot_fit_is_refused_before_it_starts(
    base: wb.Variant, tiny_task: wb.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "free_bytes", lambda device: Room(total=10**9, free=base.total_bytes, held=0))
    with pytest.raises(OutOfMemory, match=r"Full needs .* has .* free: train an adapter .*; nothing was changed\.$"):
        base.apply(finetune.Full(), tiny_task)
    assert base.apply(finetune.LoRA(rank=1, epochs=0.1), tiny_task)
