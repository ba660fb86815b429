"""What is looked up of a text by words: the words of scripts with spaces, pairs of characters of those without."""

from collections.abc import Iterator
from itertools import pairwise

import regex

from workbench.core.optional import library
from workbench.core.words import IDEOGRAPHS, SOUTH_EAST, compatible

_BARE = rf"{IDEOGRAPHS}{SOUTH_EAST}\p{{Hangul}}"  # Korean has spaces, but particles stick to its words
# A word has two letters or more, as bm25s takes them; one alone counts beside a script without spaces, as in "7号".
_RUN = regex.compile(
    rf"(?P<bare>(?:[{_BARE}]\p{{M}}*)+)|[\w--[{_BARE}]]{{2,}}+|(?<=[{_BARE}])\w|\w(?=[{_BARE}])", regex.V1
)
_CHARACTER = regex.compile(r"\P{M}\p{M}*")


def terms(text: str) -> list[str]:
    """The terms of a passage or a question, the common words of English left out.

    Words are in lower case and in a form that is the same for composed and decomposed, full-width and half-width
    characters. Where spaces tell no words apart (Chinese, Japanese, Thai; Korean with its particles), terms are single
    characters and overlapping pairs of them, which find as much as a dictionary would (Nie et al., "On the use of words
    and n-grams for Chinese information retrieval", 2000; Lee and Ahn, "Using n-grams for Korean text retrieval", 1996)
    and need none; Lucene's CJKBigramFilter does the same.
    """
    common = _common()
    return [each for each in _terms(compatible(compatible(text).casefold())) if each not in common]


def _terms(text: str) -> Iterator[str]:
    for found in _RUN.finditer(text):
        if not found["bare"]:
            yield found[0]
            continue
        characters = _CHARACTER.findall(found[0])
        yield from characters
        yield from (one + two for one, two in pairwise(characters))


def _common() -> frozenset[str]:
    return frozenset(library("bm25s.stopwords", "Searching by words").STOPWORDS_EN)
