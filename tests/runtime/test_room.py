"""How much memory is free, and models that are refused before they are read."""

from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.core.errors import OutOfMemory
from workbench.runtime import room
from workbench.runtime.room import Room, free_bytes

CPU = torch.device("cpu")


def test_this_machine() -> None:
    psutil = pytest.importorskip("psutil")
    found = free_bytes(CPU)
    assert 0 < found.free <= found.total <= psutil.virtual_memory().total
    assert found.held == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def group(root: Path, limit: str, used: str, stat: str = "") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "memory.max").write_text(limit)
    (root / "memory.current").write_text(used)
    (root / "memory.stat").write_text(stat)


def test_a_container_with_a_limit_has_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_text", lambda path, read=room._text: "0::/\n" if path.name == "cgroup" else read(path))
    group(tmp_path, "1000000\n", "700000\n", "anon 5\ninactive_file 200000\nactive_file 100000\n")
    assert set(room._groups(tmp_path)) == {(1_000_000, 400_000)}  # pages of files make room when it is needed
    group(tmp_path, "max\n", "700000\n")
    assert room._groups(tmp_path) == []


def test_what_cannot_fit_is_refused_before_it_is_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LEAST", 0)
    monkeypatch.setattr(room, "free_bytes", lambda device: Room(total=1_000_000, free=1000, held=0))
    monkeypatch.setattr("workbench.models.loading.read_model", lambda *_: pytest.fail("it was read"))
    with pytest.raises(OutOfMemory, match=r" kB of weights in bfloat16, and cpu has 1 kB free of 1 MB: .*nothing was"):
        wb.load(folders["llama"], device="cpu", dtype="bfloat16")


def test_files_that_are_mapped_into_memory_need_no_room(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LEAST", 0)
    monkeypatch.setattr(room, "free_bytes", lambda device: Room(total=1_000_000, free=1000, held=0))
    assert wb.load(folders["llama"], device="cpu", dtype="float32").total_bytes > 1000


def test_an_export_is_copied_and_needs_room(base: wb.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = base.save(tmp_path / "export")
    monkeypatch.setattr(room, "LEAST", 0)
    monkeypatch.setattr(room, "free_bytes", lambda device: Room(total=1_000_000, free=1000, held=0))
    with pytest.raises(OutOfMemory, match="load it with dtype='bfloat16', or close a variant"):
        wb.load(folder, device="cpu")


def test_a_small_model_is_loaded_whatever_is_said_to_be_free(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: Room(total=0, free=0, held=0))
    assert wb.load(folders["llama"], device="cpu").total_bytes
