"""Terms of texts: those of bm25s for English, characters and pairs of them where no space tells words apart."""

import unicodedata

import bm25s
import numpy as np
import pytest

from workbench.answering.request import Passage
from workbench.retrieval.documents import Document, passages
from workbench.retrieval.ranking import Searcher
from workbench.retrieval.terms import terms


@pytest.mark.parametrize(
    "text", ["How many seats does the ferry have?", "The sea's tide, at 1700 degrees; a B-52 & x", ""]
)
def test_english_is_that_of_bm25s(text: str) -> None:
    assert terms(text) == bm25s.tokenize(text, return_ids=False, show_progress=False)[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\u6e14\u8239", ["\u6e14", "\u8239", "\u6e14\u8239"]),
        ("\u7b2c7\u53f7pier", ["\u7b2c", "7", "\u53f7", "pier"]),
        ("\u0e17\u0e48\u0e32\u0e40", ["\u0e17\u0e48", "\u0e32", "\u0e40", "\u0e17\u0e48\u0e32", "\u0e32\u0e40"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("\uc11c\uc6b8\uc740 \ube44", ["\uc11c", "\uc6b8", "\uc740", "\uc11c\uc6b8", "\uc6b8\uc740", "\ube44"]),
        ("Stra\u00dfe \uff34\uff4f\uff57\uff4e", ["strasse", "town"]),
    ],
)
def test_terms_of_any_script(text: str, found: list[str]) -> None:
    assert terms(text) == found


def test_a_character_is_found_however_it_was_typed() -> None:
    texts = [
        unicodedata.normalize("NFD", "The caf\u00e9 is near the pier"),
        "Nothing",
        "\u6e14\u8239\u505c\u5728\u7801\u5934",
    ]
    look = Searcher([Passage(str(n), each) for n, each in enumerate(texts)], np.zeros((3, 0), np.float32), None)
    assert [each.id for each in look.search("caf\u00e9", 3, "bm25")] == ["0"]
    assert [each.id for each in look.search("\u7801\u5934\u5728\u54ea\uff1f", 3, "bm25")] == ["2"]


@pytest.mark.parametrize(
    "text",
    [
        "\u706f\u53f0\u306f\u5149\u308b\u3002" * 200,
        "\u0e17\u0e48\u0e32\u0e40\u0e23\u0e37\u0e2d" * 300,
        '{"a":1,' * 1000,
    ],
)
def test_texts_without_spaces_are_cut(text: str) -> None:
    found = passages(Document("d", text), 120, 0)
    assert len(found) > 1
    assert "".join(each.text for each in found) == text
    assert max(len(each.text) for each in found) <= 120 * 12
