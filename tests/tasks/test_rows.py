"""Files as people have them: compressed, in shards, in lists, with long cells, with names in capitals."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import workbench as wb
from workbench.core.errors import InvalidInput, NotAvailable

ROWS = [{"id": f"r{i}", "prompt": f"Question {i}?", "answer": f"answer {i}"} for i in range(8)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def ids(task: wb.Task) -> list[str]:
    return sorted(each.id for split in (task.train, task.calibration, task.test) for each in split)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.JSONL", LINES),
        ("t.ndjson", LINES),
        ("t.json", json.dumps(ROWS, indent=1)),
        ("t.json", json.dumps({"version": 1, "data": ROWS})),
        ("t.json", LINES),
        ("t.csv", "id;prompt;answer\n" + "".join(";".join(row.values()) + "\n" for row in ROWS)),
        ("t.tsv", "id\tprompt\tanswer\n" + "".join("\t".join(row.values()) + "\n" for row in ROWS)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_reads_the_same(name: str, text: str, packed: bool, tmp_path: Path) -> None:
    data = text.encode()
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(data) if packed else data)
    plain = tmp_path / "plain" / "t.jsonl"
    plain.parent.mkdir()
    plain.write_text(LINES)
    assert wb.read_task(file) == wb.read_task(plain)


def test_utf16_with_its_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("prompt,answer\ncaf\u00e9?,x\n", encoding="utf-16")
    assert wb.read_task(tmp_path / "t.csv").test[0].prompt == "caf\u00e9?"


def test_shards_are_one_split(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, rows in {"train": ROWS[:4], "validation": ROWS[4:6], "test": ROWS[6:]}.items():
        for shard, half in enumerate((rows[::2], rows[1::2])):
            place = data / f"{split}-0000{shard}-of-00002.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(half), place)
    task = wb.read_task(tmp_path)
    assert (len(task.train), len(task.calibration), len(task.test)) == (4, 2, 2)
    assert [each.id for each in task.train] == ["r0", "r2", "r1", "r3"]


@pytest.mark.parametrize("names", [("part-0.jsonl", "part-1.jsonl"), ("train-00000.jsonl.gz", "train-00001.jsonl.gz")])
def test_shards_of_no_test_split_are_divided(names: tuple[str, str], tmp_path: Path) -> None:
    for name, rows in zip(names, (ROWS[:4], ROWS[4:]), strict=True):
        data = "\n".join(map(json.dumps, rows)).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    task = wb.read_task(tmp_path)
    assert ids(task) == [row["id"] for row in ROWS]
    assert task.test


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.jsonl").write_text(LINES)
    (tmp_path / "t.txt").write_text("one two three")
    assert len(ids(wb.read_task("~/t.jsonl"))) == 8
    assert wb.read_text("~/t.txt", window=2, test=1).text == "one two three"


@pytest.mark.parametrize("source", ["./nowhere", "~/nowhere", "data/nowhere.jsonl", "/no/where", "here.csv"])
def test_a_path_that_is_not_there_asks_no_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tasks.sources.hub_dataset", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(NotAvailable, match="There is no file or folder"):
        wb.read_task(source)


def test_cells_of_any_length(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    (tmp_path / "t.csv").write_text("prompt,answer,context\nq,a," + "word " * 40_000 + "\n")
    assert len(wb.read_task(tmp_path / "t.csv").test[0].context) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.csv", 'prompt,answer\nq1,a\nq2,a\n"x" y,a\n', "t.csv, line 4: ',' expected after '\"'."),
        ("t.csv", 'prompt,answer\n"q\n1",a\nq2\n', "t.csv, line 4: expected 2 cells, got 1."),
        ("t.csv", 'prompt,answer\nq,a\n"never\nclosed\n', "t.csv, line 3: unexpected end of data."),
        (
            "t.csv",
            "prompt,answer,answer\nq,a,b\n",
            "t.csv, line 1: the column 'answer' stands there twice",
        ),
        (
            "t.jsonl",
            '{"prompt": "q", "answer": "a", "answer": "b"}\n',
            "t.jsonl, line 1: not valid JSON ('answer'",
        ),
        ("t.json", '[{"prompt": "q", "answer": "a"}, 3]', "t.json, row 2: expected a JSON object, got int."),
        ("t.json", '[{"prompt": "q",\n}]', "t.json, line 2: not valid JSON"),
        ("t.json", "3", "t.json: expected a list of JSON objects, got int."),
        ("t.csv.gz", "prompt,answer\n", "no test examples"),
        (
            "t.csv",
            'prompt,answer,choices\nq,a,"[a, b]"\n',
            "t.csv, line 2: choices is '[a, b]', but no JSON list",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(name: str, text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(InvalidInput) as caught:
        wb.read_task(tmp_path / name)
    assert told in str(caught.value)


def test_a_damaged_archive_and_one_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(LINES.encode())
    (tmp_path / "t.jsonl.gz").write_bytes(data[:-20])
    with pytest.raises(InvalidInput, match=r"Cannot unpack 't\.jsonl\.gz'"):
        wb.read_task(tmp_path / "t.jsonl.gz")
    monkeypatch.setattr("workbench.tasks.files.MOST_BYTES", 1000)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b"\n" * 100_000))
    with pytest.raises(InvalidInput, match="split it"):
        wb.read_task(tmp_path / "t.jsonl.gz")


@pytest.mark.parametrize("cell", ['"[""no"", ""yes""]"', "no|yes", "no | yes"])
def test_choices_in_one_cell(cell: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"prompt,answer,choices\nWhy?,no,{cell}\n")
    assert wb.read_task(tmp_path / "t.csv", scorer="choice").test[0].choices == ("no", "yes")


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InvalidInput, match="'answer' stands there twice"):
        wb.read_task(tmp_path / "t.parquet")
