"""The index in a file: it follows its documents, survives cancels and other writers, and says when it is damaged."""

import multiprocessing
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from library import DOCUMENTS

from workbench.answering.request import Passage
from workbench.core.errors import Cancelled, Corrupt, InvalidInput, NotAvailable
from workbench.core.progress import Progress
from workbench.retrieval.documents import Document
from workbench.retrieval.embedding import encoder
from workbench.retrieval.index import Index
from workbench.retrieval.ranking import Searcher


def _index_all(path: Path, many: list[Document]) -> None:
    Index(path).update(many)


def test_only_what_changed_is_worked_on(index: Index, monkeypatch) -> None:
    worked: list[str] = []
    vectors = index.encoder.vectors
    monkeypatch.setattr(index.encoder, "vectors", lambda texts, progress=None: worked.extend(texts) or vectors(texts))
    before = index.state
    assert index.update(DOCUMENTS) == 0
    assert index.state == before
    changed = [each for each in DOCUMENTS if each.id != "rain"]
    changed[0] = Document("tides", "Spring tides come at full moon.")
    assert index.stale(changed) == ["rain", "tides"]
    assert index.update([*changed, Document("owls", "An owl hoots.")]) == 3
    assert worked == ["Spring tides come at full moon.", "An owl hoots."]
    assert {each.id for each in index.read()[0]} == {"tides", "bread", "bees", "glass", "boats", "owls"}
    assert index.state != before


def test_a_cancelled_update_leaves_the_index_as_it_was(index: Index) -> None:
    before, progress = index.state, Progress(lambda shown: shown.cancel())
    with pytest.raises(Cancelled):
        index.update([Document("owls", "An owl hoots.")], progress)
    assert index.state == before
    assert len(index.read()[0]) == len(DOCUMENTS)


def test_two_writers_wait_for_each_other(tmp_path: Path) -> None:
    many = [Document(str(number), f"Sentence number {number}.") for number in range(500)]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_index_all, args=(tmp_path / "a.sqlite", many)) for _ in range(2)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(120)
    assert [each.exitcode for each in writers] == [0, 0]
    assert len(Index(tmp_path / "a.sqlite").read()[0]) == 500


def test_a_damaged_index_is_told(index: Index) -> None:
    data = index.path.read_bytes()
    index.path.write_bytes(data[: len(data) // 3])
    with pytest.raises(Corrupt, match="delete it"):
        Index(index.path, encoder=encoder()).read()
    index.path.write_text("something else entirely, and longer than a header of SQLite would be" * 20)
    with pytest.raises(Corrupt, match="delete it"):
        Index(index.path, encoder=encoder())


def test_another_version_is_told(index: Index) -> None:
    with pytest.raises(InvalidInput, match="words '120', not '40'"):
        Index(index.path, words=40, encoder=encoder())
    with sqlite3.connect(index.path) as base:
        base.execute("UPDATE facts SET value = '0' WHERE key = 'format'")
    with pytest.raises(InvalidInput, match="format '0', not '2'"):
        Index(index.path, encoder=encoder())


def test_an_empty_index_finds_nothing() -> None:
    nothing = Searcher([], np.empty((0, 4), dtype=np.float32), None)
    assert nothing.search("Anything?", 3) == []
    one = Searcher([Passage("a", "Rain.")], np.empty((1, 0), dtype=np.float32), None)
    assert one.search(" ", 3) == []
    with pytest.raises(NotAvailable, match="no vectors"):
        one.search("Rain?", 3, "dense")
