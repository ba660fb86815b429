"""How long a training will take, said before it begins."""

import pytest
from quick import logits

import workbench as wb
from workbench.steps import distil, finetune
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


def test_what_only_a_teacher_could_tell_stays_unknown(base: wb.Variant, tiny_task: wb.Task) -> None:
    assert distil.ForwardKL().duration(base, tiny_task) is None
    assert finetune.LoRA(epochs=0).duration(base, tiny_task) is None
