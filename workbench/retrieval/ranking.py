"""Looking passages up: by words (BM25), by meaning (vectors), or by both."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.answering.request import Passage
from workbench.core.errors import NotAvailable
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.retrieval.embedding import Encoder, Vectors
from workbench.retrieval.terms import terms

if TYPE_CHECKING:
    from workbench.retrieval.documents import Document

Scores = NDArray[np.floating[Any]]
Method = Literal["hybrid", "bm25", "dense"]
POOL = 100  # passages of each ranking that are fused
RANK = 60  # of the fusion: how little the first ranks stand out


class Store(Protocol):
    """Where passages are kept and searched. `workbench.retrieval.index.Index` is one in a file; a server is another.

    Attributes:
        encoder: what makes vectors of questions, if that is done here.
    """

    encoder: Encoder | None

    @property
    def state(self) -> str:
        """Changes with every document; empty when there is none."""

    def ids(self) -> list[str]:
        """Of its documents."""

    def stale(self, documents: "Sequence[Document]") -> list[str]:
        """Ids of documents that the store lacks, has otherwise, or has though they are gone."""

    def update(self, documents: "Sequence[Document]", progress: Progress | None = None) -> int:
        """Hold these documents and no others, cut by `workbench.retrieval.documents.passages`; how many changed."""

    def search(self, question: str, count: int, method: Method) -> list[Passage]:
        """The passages that fit a question best, the best first, each with its score."""


class Searcher:
    """Passages in memory, ready to be searched.

    Attributes:
        passages: all of them.
    """

    def __init__(self, passages: Sequence[Passage], vectors: Vectors, encoder: Encoder | None) -> None:
        self.passages, self._encoder = list(passages), encoder
        # By torch, for the threads of two libraries get in each other's way; on its side, that is three times as fast.
        self._vectors = torch.from_numpy(vectors.T.copy())
        self._bm25 = _bm25([each.text for each in passages])

    def search(self, question: str, count: int, method: Method = "hybrid") -> list[Passage]:
        """The passages that fit a question best, the best first, each with its score.

        Scores are those of BM25 (Lù, "BM25S", 2024), inner products of vectors of length 1, or, for both together,
        sums of 1 / (60 + rank) (Cormack et al., "Reciprocal Rank Fusion", 2009).
        """
        if not self.passages or not question.strip():
            return []
        ways: dict[str, Callable[[str], Scores]] = {
            "bm25": self._by_words,
            "dense": self._by_meaning,
        }
        if method == "hybrid":
            scores: Scores = np.zeros(len(self.passages))
            for way in ways.values():
                for rank, row in enumerate(_best(way(question), POOL), start=1):
                    scores[row] += 1 / (RANK + rank)
        else:
            scores = ways[method](question)
        return [replace(self.passages[row], score=float(scores[row])) for row in _best(scores, count)]

    def _by_words(self, question: str) -> Scores:
        if self._bm25 is None:
            return np.zeros(len(self.passages))
        tokens = terms(question)
        if not self._bm25.get_tokens_ids(tokens):
            return np.zeros(len(self.passages))
        found: Scores = self._bm25.get_scores(tokens)
        return found

    def _by_meaning(self, question: str) -> Scores:
        if self._encoder is None:
            raise NotAvailable("These passages have no vectors: index them with an encoder.")
        found: Scores = (torch.from_numpy(self._encoder.question(question))[None] @ self._vectors)[0].numpy()
        return found


def _best(scores: Scores, count: int) -> list[int]:
    """Rows of the highest scores above 0, the highest first; of equal ones, the first."""
    rows = np.flatnonzero(scores > 0)  # selecting among many zeros is slow
    if len(rows) > count > 0:
        least = np.partition(scores[rows], len(rows) - count)[len(rows) - count]
        rows = rows[scores[rows] >= least]
    best: list[int] = rows[np.argsort(-scores[rows], kind="stable")][:count].tolist()
    return best


def _bm25(texts: list[str]) -> Any:
    """The index; None when no text has a word."""
    bm25s = library("bm25s", "Searching by words")
    found = [terms(each) for each in texts]
    if not any(found):
        return None
    index = bm25s.BM25()
    index.index(found, show_progress=False)
    return index
