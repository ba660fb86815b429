"""Models and data chosen in the bench, without a line of code."""

import csv
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from screen import TIMEOUT

import workbench as wb
from widgets import Bench
from widgets.panes import data, models
from widgets.parts.drop import MOST, Drop, safe
from workbench.core.errors import Incomparable
from workbench.measurement.comparable import limits
from workbench.steps import prompt, prune
from workbench.tasks.glance import guess

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def written(path: Path, head: list[str], count: int = 20) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(head)
        rows.writerows([f"{name} {number}" for name in head] for number in range(count))
    return path


def sent(drop: Drop, name: str, content: bytes, piece: int = 7) -> dict[str, str]:
    """As a page sends a file."""
    told = drop.heard({"begin": name, "size": len(content)}, [])
    for at in range(0, len(content), piece):
        if not told:
            told = drop.heard({"at": at}, [memoryview(content[at : at + piece])])
    return told or drop.heard({"end": True}, [])


def test_a_dropped_table_becomes_the_task(bench: Bench, tmp_path: Path) -> None:
    content = written(tmp_path / "x.csv", ["ticket text", "queue", "Answer"]).read_bytes()
    assert sent(bench.data.drop, "my tickets (1).csv", content) == {"done": "Kept as uploads/my tickets _1_.csv."}
    assert Path("uploads/my tickets _1_.csv").read_bytes() == content
    assert bench.wait(TIMEOUT)
    pane = bench.data
    assert "ticket text 0" in pane.rows.value
    assert (pane.columns["prompt"].value, pane.columns["answer"].value) == ("ticket text", "Answer")
    assert "12 examples to learn from, 3 to calibrate, 5 to test" in pane.splits.value
    pane.scorer.value = "f1"
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert "From now on" in pane.message.value
    assert isinstance(bench.task, wb.Task)
    assert (bench.task.scorer, bench.task.test[0].prompt[:12]) == ("f1", "ticket text ")
    assert "my tickets _1_" in bench.title.value
    assert bench.compare.examples.high == 5
    names: dict[str, Any] = {"wb": wb, "bench": bench}
    exec(pane.code.value, names)
    assert names["task"].fingerprint == bench.task.fingerprint, "the code beside it does the same"


def test_the_columns_can_be_set(bench: Bench, tmp_path: Path) -> None:
    pane = bench.data
    pane.source.value = str(written(tmp_path / "odd.csv", ["one", "two"]))
    assert bench.wait(TIMEOUT)
    assert "no column &#x27;prompt&#x27;" in pane.splits.value
    pane.columns["prompt"].value, pane.columns["answer"].value = "two", "one"
    assert bench.wait(TIMEOUT)
    assert "5 to test" in pane.splits.value
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert isinstance(bench.task, wb.Task)
    assert bench.task.test[0].prompt.startswith("two")


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "~nobody/x.csv", "missing.csv", "/"])
def test_a_path_that_leads_nowhere_is_said(bench: Bench, source: str) -> None:
    before = bench.task
    for pane in (bench.data, bench.models):
        pane.source.value = source
        assert bench.wait(TIMEOUT)
        pane.button.click()
        assert bench.wait(TIMEOUT)
        assert "wb-error" in pane.message.value
        assert "unexpected" not in pane.message.value, pane.message.value
    assert bench.task is before
    assert list(bench.variants) == [bench.base.name]


def test_a_text_is_cut_into_windows(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The tide comes in twice a day. " * 500)
    pane = bench.data
    pane.source.value = str(tmp_path / "book.txt")
    pane.window.value = 32
    assert bench.wait(TIMEOUT)
    assert "16 windows of 32 tokens calibrate, 32 are scored" in pane.splits.value
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert isinstance(bench.task, wb.Text)
    assert bench.task.window == 32


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table.xlsx", "save its sheet as CSV"),
        ("data.zip", "unpack it"),
        ("model.gguf", "wb.load"),
        ("values.pkl", "may run code"),
        ("notes", "use a .jsonl, .csv or .parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(bench: Bench, name: str, said: str) -> None:
    told = sent(bench.data.drop, name, b"PK\x03\x04")
    assert said in told["error"]
    assert not Path("uploads").exists()


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(bench: Bench) -> None:
    told = bench.data.drop.heard({"begin": "big.csv", "size": 2_000_000_000}, [])
    assert "'big.csv' has 2 GB" in told["error"]
    assert "type its path" in told["error"]
    assert MOST < 2_000_000_000
    assert not Path("uploads").exists()


def test_pieces_out_of_order_leave_nothing(bench: Bench) -> None:
    drop = bench.data.drop
    assert "in order" in drop.heard({"at": 0}, [b"abc"])["error"]
    drop.heard({"begin": "a.csv", "size": 5}, [])
    assert "whole" in drop.heard({"end": True}, [])["error"]
    drop.heard({"begin": "a.csv", "size": 2}, [])
    assert "in order" in drop.heard({"at": 0}, [b"abc"])["error"]
    assert list(Path("uploads").iterdir()) == []


def test_a_second_file_of_one_name_does_not_replace_the_first(bench: Bench) -> None:
    for content in (b"prompt,answer\na,b\n", b"prompt,answer\nc,d\n"):
        sent(bench.data.drop, "../../t.csv", content)
    assert sorted(each.name for each in Path("uploads").iterdir()) == ["t 2.csv", "t.csv"]


def test_a_second_packed_file_keeps_its_endings(bench: Bench) -> None:
    for _ in range(2):
        sent(bench.data.drop, "data.jsonl.gz", gzip.compress(b'{"prompt": "a", "answer": "b"}\n'))
    assert sorted(each.name for each in Path("uploads").iterdir()) == ["data 2.jsonl.gz", "data.jsonl.gz"]


def test_a_file_on_its_way_is_dropped_with_the_bench(bench: Bench) -> None:
    bench.data.drop.heard({"begin": "a.csv", "size": 5}, [])
    bench.close()
    assert list(Path("uploads").iterdir()) == []


def test_a_number_out_of_range_is_said(bench: Bench) -> None:
    Path("book.txt").write_text("The tide comes in. " * 500)
    pane = bench.data
    pane.source.value = "book.txt"
    pane.window.box.value = 9000
    assert "Window is a whole number from 2 to 4096" in pane.splits.value
    pane.button.click()
    assert "Window is a whole number from 2 to 4096" in pane.message.value
    pane.window.box.value = 16
    assert bench.wait(TIMEOUT)
    assert "windows of 16 tokens" in pane.splits.value


def test_a_file_that_was_changed_is_read_again(bench: Bench) -> None:
    rows = [f"How many seats has boat {each}?,{each}" for each in range(40)]
    pane = bench.data
    for more in (0, 10):
        lines = [*rows, *(f"And boat {each + 100}?,{each}" for each in range(more))]
        Path("mine.csv").write_text("\n".join(["prompt,answer", *lines]) + "\n")
        pane.source.value = "mine.csv"
        assert bench.wait(TIMEOUT)
        pane.button.click()
        assert bench.wait(TIMEOUT)
        assert bench.task is not None
        assert sum(len(getattr(bench.task, each)) for each in ("train", "calibration", "test")) == 40 + more


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", ".hidden", "a\0b.csv", "表.csv", "a😀.csv", "x" * 900 + ".csv", ""]
)
def test_names_of_dropped_files_are_made_safe(name: str) -> None:
    made = safe(name)
    assert made
    assert "/" not in made
    assert not made.startswith(".")
    assert len(made) <= 100
    assert made.endswith(".csv") == name.endswith(".csv")


def test_what_a_table_says_is_escaped(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(f"prompt,answer,{HOSTILE}\n{HOSTILE},{HOSTILE},1\n")
    bench.data.source.value = str(tmp_path / "bad.csv")
    assert bench.wait(TIMEOUT)
    assert "<img" not in bench.data.rows.value
    assert "&lt;img" in bench.data.rows.value


def test_columns_are_guessed_by_their_names() -> None:
    assert guess(("id", "Question", "gold answer")) == {"prompt": "Question", "answer": "gold answer"}
    assert guess(("text", "label")) == {"prompt": "text", "answer": "label"}
    assert guess(("input", "output", "context")) == {"prompt": "input", "answer": "output", "context": "context"}
    assert guess(("a", "b")) == {}


def test_a_model_is_sized_and_loaded(bench: Bench, tmp_path: Path) -> None:
    bench.base.save("models/small.gguf")
    assert models.near() == ("models/small.gguf",)
    pane = bench.models
    pane.source.value = "models/small.gguf"
    assert bench.wait(TIMEOUT)
    assert "free of" in pane.size.value
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert "Loaded" in pane.message.value, pane.message.value
    name = list(bench.variants)[-1]
    assert bench.chosen == (bench.base.name, name)
    assert {panel.target.value for panel in bench.panels} == {name}
    assert bench.listing.rows[name]["parent"] is None
    assert "wb.load('models/small.gguf')" in pane.code.value
    made = bench[bench.add(bench.variants[name].apply(prompt.System()))]
    assert bench.parent(made.name) == name


@pytest.mark.parametrize(
    ("source", "said"), [("missing.gguf", "missing.gguf"), ("/nowhere/model", "nowhere"), ("junk.gguf", "junk")]
)
def test_a_model_that_is_not_there_changes_nothing(bench: Bench, source: str, said: str) -> None:
    Path("junk.gguf").write_bytes(b"not a model")
    bench.models.source.value = source
    bench.models.button.click()
    assert bench.wait(TIMEOUT)
    assert said in bench.models.message.value
    assert list(bench.variants) == [bench.base.name]


def test_a_model_that_does_not_fit_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.runtime import room

    bench.base.save("big")
    monkeypatch.setattr(room, "LEAST", 0)
    monkeypatch.setattr(room, "free_bytes", lambda device: room.Room(1000, 10, 0))
    bench.models.source.value = "big"
    bench.models.button.click()
    assert bench.wait(TIMEOUT)
    assert "nothing was loaded" in bench.models.message.value
    assert list(bench.variants) == [bench.base.name]


def test_what_models_can_be_compared_on_is_said(
    folders: dict[str, Path], tiny_text: wb.Text, tiny_task: wb.Task
) -> None:
    one, other = (wb.load(folders[each], device="cpu", dtype="float32") for each in ("llama", "qwen3"))
    assert limits([one, one.apply(prompt.System())], tiny_text) == ()
    assert "everything can be compared" in limits([one, other], tiny_text)[0]
    few = wb.Text(name="x", text="The tide. " * 20, window=4, calibration=0, test=1)
    strange = replace(other.apply(prune.Vocabulary(keep=0), few), source="elsewhere")
    assert "cannot be compared on it" in limits([one, strange], tiny_text)[0]
    assert "no divergence" in limits([one, strange], tiny_task)[0]
    with pytest.raises(Incomparable, match="another vocabulary"):
        wb.compare([one, strange], tiny_text, rounds=1, new_tokens=2, store=False)


def test_files_near_the_notebook_are_offered(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for name in ("a.csv", "b.txt", "t/test.jsonl", "t/train.jsonl", "c.py", "d.json"):
        (tmp_path / name).write_text("")
    assert data.near(tmp_path) == tuple(str(tmp_path / each) for each in ("a.csv", "b.txt", "t"))


def test_data_that_was_chosen_is_there_after_a_restart(bench: Bench, tmp_path: Path) -> None:
    base, task = bench.base, bench.task
    bench.data.source.value = str(written(tmp_path / "t.csv", ["prompt", "answer"]))
    bench.data.button.click()
    assert bench.wait(TIMEOUT)
    bench.add(base.apply(prompt.System()))
    chosen = bench.task
    again = Bench(base, task)
    assert again.task is task
    again.restore.take.click()
    assert again.wait(TIMEOUT)
    assert again.task.fingerprint == chosen.fingerprint
    again.close()
