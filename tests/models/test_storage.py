"""Exports: written whole or not at all, read whole or refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.core import files
from workbench.core.errors import Corrupt, InvalidInput, WorkbenchError
from workbench.models.export import MANIFEST, WEIGHTS
from workbench.steps import prompt, quantize

IDS = torch.arange(3, 40)[None]


def logits(variant: wb.Variant) -> torch.Tensor:
    with torch.no_grad():
        return variant.model(IDS).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture
def packed(base: wb.Variant) -> wb.Variant:
    """A variant with something of everything to save."""
    return base.apply(prompt.System(text="Be brief.")).apply(quantize.NF4(block_size=32))


@pytest.fixture
def export(packed: wb.Variant, tmp_path: Path) -> Path:
    return packed.save(tmp_path / "exports" / "small")


# ---- names


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a" * 101, "a" * 300, "", ".", "..", ".hidden", "x.", "x ", " x",
     "a\nb", "a\n", "~", "-rf", "a:b", "<b>", "a\u202eb", "\u2066a", "a\u200b", "a\u200c", "1\u200ca", "a\u2044b",
     "\u0301a", "\ud800", "\U0001f99e", "字" * 67],
)  # fmt: skip
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    for check in (lambda: files.check_name(name), lambda: files.inside(tmp_path, name)):
        with pytest.raises(InvalidInput) as caught:
            check()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name",
    ["a", "NF4", "System+Int8", "small one", "v1.2_final-3", "a" * 100, "0", "café", "Prüfung", "نظام", "हिन्दी",
     "नम\u200cन", "字" * 66],
)  # fmt: skip
def test_safe_names_are_kept(tmp_path: Path, name: str) -> None:
    assert files.check_name(name) == name
    assert files.inside(tmp_path, name) == tmp_path / name


def test_two_ways_to_write_a_letter_are_one_name() -> None:
    assert files.check_name("cafe\u0301") == "caf\u00e9"


def test_a_variant_is_named_and_saved_in_any_script(base: wb.Variant, tmp_path: Path) -> None:
    for name in ("Prüfung", "نظام", "字" * 66):
        folder = base.renamed(name).save(tmp_path / name)
        assert wb.load(folder, device="cpu").name == name
        base.renamed(name).save(folder)  # over the older one


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "target").symlink_to(tmp_path)
    (tmp_path / "real" / "dangling").symlink_to(tmp_path / "nowhere")
    for folder, name in (("link", "x"), ("real", "target"), ("real", "dangling")):
        with pytest.raises(InvalidInput, match="symbolic link"):
            files.inside(tmp_path / folder, name)


# ---- writing


def test_write_text_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    files.write_text(path, "first")
    files.write_text(path, "zweite Fassung — ü")
    assert path.read_text(encoding="utf-8") == "zweite Fassung — ü"
    assert [each.name for each in path.parent.iterdir()] == ["note.txt"]


def test_write_text_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "note.txt").mkdir()
    with pytest.raises(WorkbenchError, match=r"note\.txt"):
        files.write_text(tmp_path / "note.txt", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["note.txt"]


def test_round_trip_keeps_logits_recipe_name_and_decoding(packed: wb.Variant, export: Path) -> None:
    again = wb.load(export, device="cpu")
    assert torch.equal(logits(again), logits(packed))
    assert (again.name, again.source, again.recipe) == (packed.name, packed.source, packed.recipe)
    assert again.decoding == packed.decoding
    assert again.encode("Hello <|im_end|>") == packed.encode("Hello <|im_end|>")
    assert again.total_bytes == packed.total_bytes
    assert again.end_tokens == packed.end_tokens


def test_an_export_of_an_export_is_the_same(export: Path, tmp_path: Path) -> None:
    again = wb.load(export).save(tmp_path / "again")
    assert contents(again) == contents(export)


def test_only_files_that_hold_no_code(export: Path) -> None:
    assert {path.suffix for path in export.iterdir()} <= {".json", ".safetensors", ".jinja", ".tensors"}


def test_saving_leaves_nothing_beside(export: Path) -> None:
    assert [path.name for path in export.parent.iterdir()] == [export.name]


def test_others_may_read_an_export_as_any_new_folder(export: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "file").touch()
    assert export.stat().st_mode == plain.stat().st_mode
    assert {path.stat().st_mode for path in export.iterdir()} == {(plain / "file").stat().st_mode}


def test_a_folder_of_something_else_is_kept(packed: wb.Variant, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("precious")
    with pytest.raises(InvalidInput, match="overwrite=True"):
        packed.save(folder)
    assert contents(folder) == {"chapter.txt": b"precious"}
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InvalidInput, match="overwrite=True"):
        packed.save(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis"]


def test_overwrite_replaces(packed: wb.Variant, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("no longer precious")
    packed.save(folder, overwrite=True)
    assert not (folder / "chapter.txt").exists()
    assert torch.equal(logits(wb.load(folder)), logits(packed))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_an_empty_folder_and_an_older_export_are_replaced(base: wb.Variant, packed: wb.Variant, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    base.save(tmp_path / "x")
    packed.save(tmp_path / "x")
    assert wb.load(tmp_path / "x").recipe == packed.recipe
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_is_not_followed_into_what_it_names(packed: wb.Variant, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "chapter.txt").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(InvalidInput):
        packed.save(tmp_path / "link")
    packed.save(tmp_path / "link", overwrite=True)
    assert contents(tmp_path / "precious").get("chapter.txt") == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "precious"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/below", "link/below"])
def test_paths_that_cannot_be_are_refused_in_one_sentence(packed: wb.Variant, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(WorkbenchError) as caught:
        packed.save(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# Imports once, then forks a child for each save, to which something happens: files limited to 64 KiB (the write fails
# as on a full disk), or a kill before a file is opened for writing or before the n-th rename. Audit hooks hear of both.
STRIKE = """
import json, os, resource, signal, sys
import torch
import workbench as wb
from workbench.core.errors import WorkbenchError

torch.set_num_threads(1)


def strike(how):
    def watch(event, args):
        if event == "open" and str(args[0]).endswith(how.get("file", "/")) and args[2] & (os.O_WRONLY | os.O_RDWR):
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "os.rename" and "rename" in how:
            if how["rename"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            how["rename"] -= 1

    if "limit" in how:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (how["limit"], how["limit"]))
    else:
        sys.addaudithook(watch)


def save(source, target, how):
    variant = wb.load(source, device="cpu")
    strike(how)
    try:
        variant.save(target)
    except WorkbenchError as error:
        print(error, flush=True)
        return 7
    return 0


results = []
for source, target, how in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = save(source, target, how)
        finally:
            os._exit(code)
    results.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(results))
"""
STRIKES = {
    "full disk": {"limit": 65536},
    "killed while writing": {"file": "tokenizer_config.json"},
    "killed before the first rename": {"rename": 0},
    "killed before the second rename": {"rename": 1},
    "killed before the third rename": {"rename": 2},
}


def test_a_save_that_is_struck_leaves_an_export_that_loads(
    base: wb.Variant, packed: wb.Variant, folders, tmp_path: Path
) -> None:
    exports = {name: packed.save(tmp_path / name / "small") for name in STRIKES}
    before = contents(exports["full disk"])
    cases = [(str(folders["llama"]), str(exports[name]), how) for name, how in STRIKES.items()]
    done = subprocess.run(
        [sys.executable, "-c", STRIKE, json.dumps(cases)], capture_output=True, text=True, timeout=120, check=True
    )
    *said, last = done.stdout.splitlines()
    codes = dict(zip(STRIKES, json.loads(last), strict=True))

    assert codes.pop("full disk") == 7
    assert len(said) == 1
    assert said[0].startswith("Could not write")
    assert contents(exports["full disk"]) == before
    assert [path.name for path in (tmp_path / "full disk").iterdir()] == ["small"]

    old, new = logits(packed), logits(base)
    assert codes["killed while writing"] == codes["killed before the first rename"] == -signal.SIGKILL
    for name, code in codes.items():
        assert code in {0, -signal.SIGKILL}, done.stderr
        found = logits(wb.load(exports[name]))
        assert torch.equal(found, new if code == 0 else old) or torch.equal(found, new), name
        base.save(exports[name])  # and what was left behind does not stand in the way
        assert torch.equal(logits(wb.load(exports[name])), new)


# ---- reading


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1], ids=["empty", "one byte", "half", "all but one byte"])
def test_truncated_files_are_corrupt(export: Path, tmp_path: Path, keep: float) -> None:
    for name in contents(export):
        copy = tmp_path / "copy"
        shutil.copytree(export, copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: int(len(data) * keep)] if keep == 0.5 else data[: int(keep)])
        with pytest.raises(Corrupt, match=name):
            wb.load(copy)
        shutil.rmtree(copy)


def test_missing_files_are_corrupt(export: Path, tmp_path: Path) -> None:
    for name in set(contents(export)) - {MANIFEST}:
        copy = tmp_path / "copy"
        shutil.copytree(export, copy)
        (copy / name).unlink()
        with pytest.raises(Corrupt, match=name):
            wb.load(copy)
        shutil.rmtree(copy)


def test_a_flipped_bit_is_corrupt_wherever_it_is(export: Path) -> None:
    chosen = random.Random(0)
    for name, data in contents(export).items():
        path = export / name
        # The manifest says which version wrote it; another version's is refused, not called corrupt.
        wanted = WorkbenchError if name == MANIFEST else Corrupt
        tries = 80 if name == MANIFEST else 8
        for _ in range(tries):
            position, bit = chosen.randrange(len(data)), chosen.randrange(8)
            damage(path, position, bit)
            with pytest.raises(wanted) as caught:
                wb.load(export)
            assert "\n" not in str(caught.value)
            path.write_bytes(data)
    assert wb.load(export).recipe


def test_an_export_is_corrupt_when_its_hash_list_lost_a_file(export: Path) -> None:
    manifest = json.loads((export / MANIFEST).read_text())
    del manifest["sha256"][WEIGHTS]
    (export / MANIFEST).write_text(json.dumps(manifest))
    tensors = load_file(export / WEIGHTS)
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, export / WEIGHTS)
    with pytest.raises(Corrupt):
        wb.load(export)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", "[" * 100_000, '{"sha256": [], "packed": 1}'])
def test_a_manifest_that_is_none_is_corrupt(export: Path, text: str) -> None:
    (export / MANIFEST).write_text(text)
    with pytest.raises(Corrupt, match=MANIFEST):
        wb.load(export)


def test_an_unknown_packed_kind_is_refused() -> None:
    from workbench.models.packed import unpack_module

    with pytest.raises(InvalidInput, match="'Bits2Linear'"):
        unpack_module("Bits2Linear", {}, {})


def test_hashes_are_those_of_the_files(export: Path) -> None:
    import hashlib

    manifest = json.loads((export / MANIFEST).read_text())
    assert set(contents(export)) - {MANIFEST} == set(manifest["sha256"])
    for name, digest in manifest["sha256"].items():
        assert digest == hashlib.sha256((export / name).read_bytes()).hexdigest() == files.sha256(export / name)


def test_the_cache_is_where_it_was_asked_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "mine"))
    assert files.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("WORKBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder().parent == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder().is_relative_to(Path(os.path.expanduser("~")))
