"""How long a training will take, said before it begins."""

import pytest
from quick import logits

import workbench as wb
from workbench.core.errors import OutOfMemory
from workbench.runtime.room import Room
from workbench.steps import distil, finetune
from workbench.training import room
from workbench.training.trainer import Run


@pytest.mark.parametrize("kind", [finetune.LoRA, finetune.Full])
def test_a_trial_tells_and_changes_nothing(
    base: wb.Variant, tiny_task: wb.Task, kind: type[finetune.LoRA], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logits(base)
    names = {name: each.clone() for name, each in base.model.named_parameters()}
    short = kind(epochs=1, batch_size=4).duration(base, tiny_task)
    assert short is not None
    assert short > 0
    assert (logits(base) == before).all()
    assert all((each == names[name]).all() for name, each in base.model.named_parameters())

    def tried_again(*_: object) -> None:
        raise AssertionError("the same pace is known already")

    monkeypatch.setattr(Run, "learn", tried_again)
    long = kind(epochs=50, batch_size=4, learning_rate=1e-5).duration(base, tiny_task)
    assert long is not None
    assert long > short


def test_what_cannot_fit_is_not_tried(base: wb.Variant, tiny_task: wb.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*_: object) -> None:
        raise AssertionError("a copy takes what is not there")

    monkeypatch.setattr(room, "free_bytes", lambda device: Room(1000, 1000, 0))
    monkeypatch.setattr(finetune.Full, "prepare", copied)
    with pytest.raises(OutOfMemory, match="train an adapter"):
        finetune.Full(batch_size=2).duration(base, tiny_task)


def test_activations_are_computed_again_in_the_trial_as_in_the_training(
    base: wb.Variant, tiny_task: wb.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    kind = type(base.model)
    monkeypatch.setattr(kind, "activation_checkpointing_enable", lambda model: asked.append(model), raising=False)
    finetune.LoRA(checkpointing=True, batch_size=3).duration(base, tiny_task)
    assert len(asked) == 1


def test_what_only_a_teacher_could_tell_stays_unknown(base: wb.Variant, tiny_task: wb.Task) -> None:
    assert distil.ForwardKL().duration(base, tiny_task) is None
    assert finetune.LoRA(epochs=0).duration(base, tiny_task) is None
