"""Documents: what is read, what is refused by name, and how they are cut."""

import json
from pathlib import Path

import pytest
from library import TEXTS

from workbench.answering.request import Passage
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.retrieval.documents import Document, Library, passages, read_documents
from workbench.retrieval.index import Index


def test_files_that_are_no_text_are_refused_by_name(folder: Path) -> None:
    (folder / "photo.png").write_bytes(b"\x89PNG\x00\xff\xfe")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "null.txt").write_text("a\0b")
    (folder / "empty.txt").write_text(" \n")
    (folder / ".hidden").write_text("secret")
    (folder / "link.md").symlink_to("/etc/hostname")
    (folder / "rows.jsonl").write_text('{"id": "one", "text": "First."}\n[1]\n{"title": "two", "content": "Second."}\n')
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.txt").write_text("Deep.")
    found = read_documents(folder)
    names = {each.id for each in found.documents}
    assert names == {f"{name}.md" for name in TEXTS} | {"one", "two", "sub/deep.txt"}
    assert found.refused == [
        "empty.txt: empty",
        "latin.txt: not UTF-8 text (byte 3)",
        "null.txt: not text",
        "photo.png: not UTF-8 text (byte 0)",
        "rows.jsonl, line 2: no JSON object with a text",
    ]


def test_a_huge_file_is_refused(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("workbench.retrieval.documents.MOST_BYTES", 1_000_000)
    (folder / "huge.txt").write_text("a " * 600_000)
    assert read_documents(folder).refused == ["huge.txt: larger than 1 MB"]


@pytest.mark.parametrize("source", ["", "no/such/place"])
def test_no_documents(source: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidInput, NotAvailable)):
        read_documents(source)
    with pytest.raises(InvalidInput, match="holds no document"):
        read_documents(tmp_path)


@pytest.mark.parametrize("overlap", [0, 3])
def test_passages_are_whole_sentences_and_hold_everything(overlap: int) -> None:
    text = "One two three. Four five? Six seven eight nine ten eleven twelve thirteen. Fourteen! Fifteen sixteen."
    found = [each.text for each in passages(Document("d", text), 5, overlap)]
    assert all(len(each.split()) <= 5 for each in found)
    assert [word for word in text.split() if not any(word in each.split() for each in found)] == []
    if not overlap:
        assert " ".join(found) == text
        assert found[0] == "One two three. Four five?"


def test_lines_stay_lines() -> None:
    text = "| a | b |\n| 1 | 2 |\n\nRain falls."
    assert passages(Document("d", text), 40, 0) == [Passage("d", text)]
    wrapped = "The ferry leaves at seven in the morning and comes back at\nnoon. It has twelve seats."
    assert passages(Document("d", wrapped), 40, 0) == [Passage("d", wrapped.replace("\n", " "))]


def test_repeated_ids_are_numbered_and_no_text_is_refused(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "One."}, {"id": 1, "text": "Two."}, {"id": 2, "text": "\ud800"}]
    library = Library()
    for name in ("a (2)", "a", "a", "a (2)"):
        library.add(name, "Rain.")
    assert len({each.id for each in library.documents}) == 4
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[0]))
    found = read_documents(tmp_path)
    assert [each.id for each in found.documents] == ["1", "1 (2)", "1 (3)"]
    Index(tmp_path / "x.sqlite").update(found.documents)
    assert found.refused == ["2: not Unicode text"]


def test_a_row_of_full_stops_is_read_at_once() -> None:
    text = "." * 200_000 + "x"
    assert len(passages(Document("d", text), 10, 0)) == 1


def test_a_data_set_row_without_a_text_is_refused_alone(tmp_path: Path, monkeypatch) -> None:
    rows = {"train": [{"text": "One."}, {"text": None}, {"text": "Three."}]}
    monkeypatch.setattr("datasets.load_dataset", lambda _: rows)
    found = read_documents("somebody/somewhere")
    assert [each.text for each in found.documents] == ["One.", "Three."]
    assert found.refused == ["train:1: no text in text, content, body or passage"]
