"""What a bench did is on disk as it goes, and comes back after a restart: variants, names, conversation, results."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from screen import TIMEOUT, Gate

import workbench as wb
from widgets import Bench, record
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.steps import finetune, prune, quantize


@pytest.fixture
def bench_task(tiny_task: wb.Task) -> wb.Task:
    return tiny_task


def logits(variant: Any) -> Any:
    import torch

    with torch.no_grad():
        return variant.model(torch.arange(3, 40)[None]).logits


def worked(bench: Bench) -> None:
    """Two variants, one renamed and one not ticked; a question; a comparison."""
    for step in (quantize.RTN(bits=4, group_size=32), prune.Magnitude(sparsity=0.3)):
        bench.turn_to(step)
        bench.panel(step.family()).apply()
        assert bench.wait(TIMEOUT)
    four, thin = list(bench.variants)[1:]
    bench.rename(four, "four bits")
    bench.choose(thin, False)
    bench.chat.prompt.value = "How many seats?"
    bench.chat.length.value = 4
    bench.chat.ask()
    bench.compare.run()
    assert bench.wait(TIMEOUT)
    assert bench.comparison is not None


def test_a_restart_loses_nothing(bench: Bench, base: wb.Variant, bench_task: wb.Task) -> None:
    assert bench.restore.widget.layout.display == "none"
    worked(bench)
    names, chosen, said = list(bench.variants), bench.chosen, bench.chat.turns
    found = bench.comparison
    wanted = [logits(each) for each in bench.variants.values()]
    bench.close()
    again = Bench(wb.load(base.source, device="cpu", dtype="float32"), bench_task)
    assert again.restore.widget.layout.display != "none"
    assert "left 2 variants (four bits, Magnitude), 1 question, a comparison of 2." in again.restore.said.value
    again.restore.take.click()
    assert again.wait(TIMEOUT)
    assert (list(again.variants), again.chosen) == (names, chosen)
    for variant, each in zip(again.variants.values(), wanted, strict=True):
        assert (logits(variant) == each).all()
    assert [each.html() for each in again.chat.turns] == [each.html() for each in said]
    assert again.comparison is not None
    assert found is not None
    assert again.comparison.runs == found.runs
    assert again.panel("prune").step == prune.Magnitude(sparsity=0.3)
    assert "Restored: 2 variants" in again.restore.message.value
    again.close()


def test_what_was_learned_comes_back_from_its_weights(
    bench: Bench, base: wb.Variant, bench_task: wb.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training is not repeated; what was made of it is, from its export."""
    bench.turn_to(finetune.Full(epochs=1))
    bench.panel("finetune").apply()
    assert bench.wait(TIMEOUT)
    tuned = list(bench.variants)[1]
    bench.add(bench.variants[tuned].apply(quantize.Int8(), bench_task))
    wanted = [logits(each) for each in bench.variants.values()]
    bench.close()
    monkeypatch.setattr(finetune.Full, "apply", None)
    again = Bench(wb.load(base.source, device="cpu", dtype="float32"), bench_task)
    assert "1 export read from disk" in again.restore.said.value
    again.restore.run()
    assert again.wait(TIMEOUT)
    for variant, each in zip(again.variants.values(), wanted, strict=True):
        assert abs(logits(variant) - each).max() < 1e-4
    kept = again.record
    assert [each.recipe for each in kept.weights] == [kept.variants[1].recipe]
    assert (again.journal.folder / kept.weights[0].folder).is_dir()
    again.remove(tuned)  # what was made of it still needs it
    assert (again.journal.folder / kept.weights[0].folder).is_dir()
    again.remove(list(again.variants)[1])
    assert not (again.journal.folder / kept.weights[0].folder).exists()
    again.close()


def test_what_was_learned_is_learned_again_when_its_export_is_gone(
    bench: Bench, base: wb.Variant, bench_task: wb.Task
) -> None:
    """A folder that somebody renamed or removed takes nothing away but time."""
    bench.turn_to(finetune.Full(epochs=1))
    bench.panel("finetune").apply()
    assert bench.wait(TIMEOUT)
    wanted, place = [logits(each) for each in bench.variants.values()], bench.journal.folder
    bench.close()
    (place / "weights").rename(place / "elsewhere")
    again = Bench(wb.load(base.source, device="cpu", dtype="float32"), bench_task)
    again.restore.run()
    assert again.wait(TIMEOUT)
    for variant, each in zip(again.variants.values(), wanted, strict=True):
        assert abs(logits(variant) - each).max() < 1e-4
    again.close()


def test_a_bench_is_saved_and_loaded(bench: Bench, tmp_path: Path, bench_task: wb.Task) -> None:
    worked(bench)
    names, wanted = list(bench.variants), [logits(each) for each in bench.variants.values()]
    place = bench.save(tmp_path / "mine")
    with pytest.raises(InvalidInput, match="exists: choose another path"):
        bench.save(place)
    bench.save(place, overwrite=True)
    with pytest.raises(InvalidInput, match="exists"):
        bench.save(tmp_path, overwrite=True)
    bench.close()
    again = Bench.load(place)
    assert again.wait(TIMEOUT)
    assert list(again.variants) == names
    assert again.task == bench_task
    for variant, each in zip(again.variants.values(), wanted, strict=True):
        assert (logits(variant) == each).all()
    again.close()


def test_records_that_cannot_be_read(tmp_path: Path, bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="There is no saved bench"):
        Bench.load(tmp_path / "none")
    worked(bench)
    place = bench.save(tmp_path / "mine")
    whole = (place / record.NAME).read_text()
    for text, sentence in (
        (whole[: len(whole) // 2], "damaged"),
        (json.dumps(json.loads(whole) | {"version": 99}), "a newer workbench"),
        ("[]", "damaged"),
    ):
        (place / record.NAME).write_text(text)
        with pytest.raises(InvalidInput, match=sentence):
            Bench.load(place)
    (place / record.NAME).write_text(whole)
    (place / record.TASK).write_text("{}")
    with pytest.raises(InvalidInput, match="task of the bench"):
        Bench.load(place)


def test_what_fails_is_said_and_the_rest_comes_back(bench: Bench, base: wb.Variant, bench_task: wb.Task) -> None:
    worked(bench)
    kept = bench.record
    bench.close()
    broken = kept.variants[1].model_copy(update={"name": "gone", "source": "/nowhere/model"})
    record.write(bench.journal.folder, kept.model_copy(update={"variants": (*kept.variants, broken)}), bench_task)
    again = Bench(wb.load(base.source, device="cpu", dtype="float32"), bench_task)
    again.restore.run()
    assert again.wait(TIMEOUT)
    assert list(again.variants) == [each.name for each in kept.variants]
    assert "gone&#x27; could not be made again" in again.restore.message.value
    assert again.record.variants[-1] == broken  # it may come back another time
    again.close()


def test_a_restore_that_is_killed_can_be_begun_again(
    bench: Bench, base: wb.Variant, bench_task: wb.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked(bench)
    kept = bench.record
    bench.close()

    def dies(*_: Any) -> None:
        raise RuntimeError("killed")

    again = Bench(wb.load(base.source, device="cpu", dtype="float32"), bench_task)
    with monkeypatch.context() as patch:
        patch.setattr(prune.Magnitude, "apply", dies)
        again.restore.run()
        assert again.wait(TIMEOUT)
    assert [each.name for each in again.record.variants] == [each.name for each in kept.variants]
    again.close()


def test_a_bench_that_lives_offers_its_record_to_none(bench: Bench, base: wb.Variant, bench_task: wb.Task) -> None:
    worked(bench)
    assert record.earlier(base, bench_task) is None
    bench.close()
    assert record.earlier(base, bench_task) is not None
    assert record.earlier(base, None) is None


def test_a_full_disk_is_told_of_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(bench, "warn", told.append)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "_write", full)
    for step in (quantize.Int8(), quantize.RTN()):
        bench.add(bench.base.apply(step))
    assert len(bench.variants) == 3
    assert told == [
        "What this bench does is no longer recorded (No space left on device): free some space, or save it elsewhere."
    ]


def test_the_newest_records_are_kept(bench: Bench, base: wb.Variant, bench_task: wb.Task) -> None:
    worked(bench)
    bench.close()
    folder = bench.journal.folder
    for number in range(8):
        shutil.copytree(folder, folder.with_name(f"{folder.name[:12]}-2000010{number}-000000-aa"))
    record.forget(base, bench_task)
    left = sorted(each.name for each in folder.parent.iterdir())
    assert len(left) == record.KEPT
    assert left[-1] == folder.name
    assert WorkbenchError


def test_an_export_on_its_way_is_left_alone(bench: Bench) -> None:
    """What another thread writes is not named by the record yet when a tick is recorded."""
    worked(bench)
    going = bench.journal.folder / record.WEIGHTS / ".going"
    going.mkdir(parents=True)
    bench.choose(bench.base.name, False)
    assert going.is_dir()


def test_a_saved_bench_has_what_was_learned(bench: Bench, bench_task: wb.Task, tmp_path: Path) -> None:
    """Its weights go along though only what was made of it is still on the list."""
    bench.turn_to(finetune.Full(epochs=1))
    bench.panel("finetune").apply()
    assert bench.wait(TIMEOUT)
    tuned = list(bench.variants)[1]
    bench.add(bench.variants[tuned].apply(quantize.Int8(), bench_task))
    bench.remove(tuned)
    place = bench.save(tmp_path / "mine")
    (weights,) = record.read(place).weights
    assert (place / weights.folder).is_dir()
    assert (bench.journal.folder / bench.weights[0].folder).is_dir()


@pytest.mark.parametrize("folder", ["../../elsewhere", "/etc", "weights", "weights/..", "weights/0123456789ab/../.."])
def test_a_record_names_no_folder_outside_of_its_own(bench: Bench, tmp_path: Path, folder: str) -> None:
    """What nothing needs is removed: a record from elsewhere must not say what."""
    worked(bench)
    place = bench.save(tmp_path / "mine")
    kept = json.loads((place / record.NAME).read_text())
    kept["weights"] = [{"source": "x", "recipe": [], "folder": folder}]
    (place / record.NAME).write_text(json.dumps(kept))
    with pytest.raises(InvalidInput, match="damaged"):
        Bench.load(place)


def test_a_model_in_another_type_comes_back_in_it(bench: Bench, base: wb.Variant, bench_task: wb.Task) -> None:
    half = wb.load(base.source, device="cpu", dtype="bfloat16").under("half")
    bench.add(half)
    bench.add(half.apply(prune.Magnitude(sparsity=0.3)))
    bench.close()
    again = Bench(wb.load(base.source, device="cpu", dtype="float32"), bench_task)
    again.restore.take.click()
    assert again.wait(TIMEOUT)
    assert [str(each.dtype) for each in again.variants.values()] == ["torch.float32"] + ["torch.bfloat16"] * 2
    again.close()


def test_a_restore_that_was_cancelled_goes_on(bench: Bench, base: wb.Variant, bench_task: wb.Task) -> None:
    worked(bench)
    names, turns = list(bench.variants), len(bench.chat.turns)
    bench.close()
    again = Bench(wb.load(base.source, device="cpu", dtype="float32"), bench_task)
    gate = Gate(again)
    again.restore.take.click()
    again.jobs[-1].cancel()
    gate.opened.set()
    assert again.wait(TIMEOUT)
    assert "Restore again" in again.restore.message.value
    again.restore.take.click()
    assert again.wait(TIMEOUT)
    assert list(again.variants) == names
    assert len(again.chat.turns) == turns
    assert again.lost == ()
    again.close()
