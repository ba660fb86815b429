"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.core import files
from workbench.steps import distil, finetune, prune
from workbench.training import checkpoint


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk and what is renamed, in this order."""
    seen: list[tuple[str, str]] = []
    to_disk, replace = files.to_disk, os.replace
    monkeypatch.setattr(files, "to_disk", lambda path: (seen.append(("disk", path.name)), to_disk(path)))
    monkeypatch.setattr(os, "replace", lambda one, other: (seen.append(("place", Path(one).name)), replace(one, other)))
    return seen


def test_a_file_or_folder_takes_its_place_once_it_is_on_disk(tmp_path: Path, order: list[tuple[str, str]]) -> None:
    with files.whole(tmp_path / "deep" / "note.txt") as temporary:
        temporary.write_text("words")
        assert not (tmp_path / "deep" / "note.txt").exists()
    with files.whole(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "note.txt").write_text("words")
    assert (tmp_path / "deep" / "note.txt").read_text() == (tmp_path / "folder" / "note.txt").read_text() == "words"
    assert [what for what, _ in order] == ["disk", "place"] * 2
    assert all(first[1] == second[1] for first, second in zip(order[::2], order[1::2], strict=True))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["deep", "folder"]


def test_what_fails_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("before")

    def fail() -> None:
        with files.whole(tmp_path / "note.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "note.txt").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_somebody_else_made_meanwhile_stays(tmp_path: Path) -> None:
    with files.whole(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "theirs").write_text("first")
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["theirs"]
    assert len(list(tmp_path.iterdir())) == 1


def test_every_byte_of_a_folder_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    paths = [tmp_path / "a" / "one", tmp_path / "a" / "b" / "two"]
    for path in paths:
        path.write_text("words")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    files.to_disk(tmp_path / "a")
    assert sorted(synced) == sorted(map(str, paths))


def test_checkpoints_and_teachers_are_on_disk_before_they_take_their_place(
    base: wb.Variant, tiny_task: wb.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[tuple[str, str]]
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    checkpoint.write(tmp_path / "kept.safetensors", {"weight": torch.zeros(2)}, {})
    student = base.apply(prune.DropBlocks(share=0.5, order="last"), tiny_task)
    student.apply(distil.ForwardKL(epochs=0.5), tiny_task)
    student.apply(distil.SequenceLevel(epochs=0.5), tiny_task)
    base.apply(finetune.LoRA(epochs=0.5), tiny_task)
    places = [at for at, (what, _) in enumerate(order) if what == "place"]
    assert len(places) == 3
    assert all(order[at - 1] == ("disk", order[at][1]) for at in places)
