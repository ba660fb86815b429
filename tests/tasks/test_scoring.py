# ruff: noqa: RUF001  # look-alikes are what is tested
"""Scores of answers, each worked out by hand from the rules in the scorers' docstrings."""

import re
import string
from pathlib import Path

import pytest

from workbench.tasks.numbers import numbers, plain
from workbench.tasks.scoring import SCORERS, normalize

DATA = Path(__file__).parents[2] / "data"

ENGLISH = [
    ("exact", "The Cat.", "cat", 1.0),
    ("exact", "  a   big,  cat ", "big cat", 1.0),
    ("exact", "cats", "cat", 0.0),
    ("exact", "", "cat", 0.0),
    ("contains", "It is the Galley at Harrow.", "galley", 1.0),
    ("contains", "It is a concatenation.", "cat", 0.0),
    ("contains", "cat big", "big cat", 0.0),
    # said {the big cat sat} -> big cat sat; gold big cat: precision 2/3, recall 1 -> 0.8
    ("f1", "the big cat sat", "a big cat", 0.8),
    ("f1", "dog", "cat", 0.0),
    ("f1", "cat cat", "cat", 2 / 3),
    ("f1", "", "", 1.0),
    ("f1", "", "cat", 0.0),
    ("number", "First 3, then 1,234.50 in all", "#### 1234.5", 1.0),
    ("number", "It is -7.", "-7", 1.0),
    ("number", "It is 7.", "-7", 0.0),
    ("number", "none", "7", 0.0),
    ("json", '{"b": 1, "a": [2]}', '{"a": [2], "b": 1}', 1.0),
    ("json", '```json\n{"a": 1}\n```', '{"a": 1}', 1.0),
    ("json", 'Sure! {"a": 1}', '{"a": 1}', 0.0),
    ("json", '{"a": 1', '{"a": 1}', 0.0),
    ("json", '{"a": true}', '{"a": 1}', 0.0),
    ("json", "", '{"a": 1}', 0.0),
    ("choice", "B", "b", 1.0),
]
# What the normal form of SQuAD would throw away, or keep where nobody means it.
TOLD_APART = [
    ("exact", "", "A", 0.0),
    ("exact", "The", "A", 0.0),
    ("f1", "", "A", 0.0),
    ("contains", "The answer is A.", "A", 1.0),
    ("exact", "125", "12.5", 0.0),
    ("exact", "5", "-5", 0.0),
    ("exact", "C#", "C++", 0.0),
    ("exact", "-", "+", 0.0),
    ("contains", "It is 314", "3.14", 0.0),
    ("f1", "314", "3.14", 0.0),
    ("exact", "−5", "-5", 1.0),
    ("exact", "café", "café", 1.0),
    ("exact", "北京。", "北京", 1.0),
    ("number", "It is −5", "-5", 1.0),
    ("number", ".5", "0.5", 1.0),
    ("json", '{"a": 1.0}', '{"a": 1}', 1.0),
    ("exact", "A", "A", 1.0),
    ("exact", "1,000", "1000", 1.0),
    ("exact", "1 000", "1000", 1.0),
    ("exact", "1_000_000", "1000000", 1.0),
    ("exact", "1'000", "1000", 1.0),
    ("exact", "1\u202f000", "1000", 1.0),
    ("exact", "１２３", "123", 1.0),
    ("exact", "٣", "3", 1.0),
    ("number", "1.234,5", "1234.5", 1.0),
    ("number", "1,5", "1.5", 1.0),
    ("number", "1,2,3", "3", 1.0),
    ("number", "Rooms 101 102", "102", 1.0),
    ("number", "1 000 000 in all", "1000000", 1.0),
    ("number", "COVID-19", "19", 1.0),
    ("number", "COVID-19", "-19", 0.0),
    ("number", "-$5", "-5", 1.0),
    (
        "number",
        "9999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
        "99999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
        0.0,
    ),
    ("number", "1e3", "1000", 1.0),
    ("number", "0,500", "0.5", 1.0),
    ("number", "12,34,567", "1234567", 1.0),
    ("exact", "$5", "5", 1.0),
    ("exact", "50%", "50", 1.0),
    ("exact", "€5", "5", 0.0),
    ("exact", "€5", "$5", 0.0),
    ("exact", "10:30", "1030", 0.0),
    ("exact", "1/2", "12", 0.0),
    ("exact", "3-5", "35", 0.0),
    ("exact", "1990–1995", "1990-1995", 1.0),
    ("exact", "A+", "A-", 0.0),
    ("exact", "A+", "A", 0.0),
    ("exact", "A-", "A", 0.0),
    ("exact", "O-", "O+", 0.0),
    ("exact", "x<5", "x>5", 0.0),
    ("exact", "x=5", "x = 5", 1.0),
    ("contains", "so x = 5", "5", 1.0),
    ("exact", "Straße", "STRASSE", 1.0),
    ("exact", "don’t", "don't", 1.0),
    ("exact", "Don't", "dont", 1.0),
    ("exact", "well-known", "wellknown", 1.0),
    ("exact", "The", "A", 0.0),
    ("exact", "an", "the", 0.0),
    ("contains", "Option A is right", "A", 1.0),
    ("contains", "It is a dog.", "A", 0.0),
    ("contains", "A dog.", "A", 0.0),
    ("contains", "(A) Paris", "A", 1.0),
    ("exact", "", "", 1.0),
    ("contains", "x", "", 0.0),
    ("f1", "", "", 1.0),
    ("contains", "答案是北京。", "北京", 1.0),
    ("contains", "首都は東京です", "東京", 1.0),
    ("f1", "北京", "北京市", 0.8),
    ("contains", "수도는 서울입니다", "서울", 1.0),
    ("contains", "คำตอบคือเชียงใหม่", "เชียงใหม่", 1.0),
    ("exact", "ｶﾞ", "ガ", 1.0),
    ("exact", "10²", "102", 0.0),
    ("exact", "?!", "!?", 0.0),
    ("exact", "👍", "👎", 0.0),
    ("exact", "❤️", "❤", 1.0),
    ("exact", "“The cat”", "cat", 1.0),
    ("exact", "U.S.", "us", 1.0),
    ("exact", "U.S.A.", "USA", 1.0),
    ("exact", "Once Upon A Time", "once upon a time", 1.0),
    ("json", '{"a":"café"}', '{"a":"café"}', 1.0),
    ("json", '{"a":1e2}', '{"a":100}', 1.0),
    ("json", '{"a":true}', '{"a":1}', 0.0),
    ("json", '{"a":NaN}', '{"a":NaN}', 0.0),
    ("json", "[1,2]", "[2,1]", 0.0),
    ("json", '{"a":0.1}', '{"a":0.10}', 1.0),
    ("json", "1e999999999999999999999", "1", 0.0),
    ("json", "-0.0", "0", 1.0),
    ("contains", "pi is 3.14.", "3.14", 1.0),
    ("contains", "3.141", "3.14", 0.0),
    ("exact", "v1.2", "v12", 0.0),
    ("exact", "+5", "5", 1.0),
    ("exact", ".5", "0.5", 1.0),
    ("exact", "\ud800", "x", 0.0),
    ("exact", "a", "A", 1.0),
    ("exact", "3.5", "3,5", 1.0),
    ("exact", "1, 2, 3", "1,2,3", 1.0),
    ("exact", "C#.", "c#", 1.0),
    ("exact", "F#", "F", 0.0),
    ("exact", 'the "cat"', "cat", 1.0),
    ("contains", "I know C++, and C#", "C++", 1.0),
    ("exact", "5 km", "5km", 0.0),
    ("exact", "-", "-", 1.0),
    ("number", "(−5)", "-5", 1.0),
    ("number", "between 3-5", "5", 1.0),
    ("exact", "cat—dog", "cat dog", 1.0),
    ("exact", "Hello — world", "hello world", 1.0),
    ("exact", "1.5 million", "15 million", 0.0),
    ("f1", "the answer is 1.5", "1.5", 0.5),
    ("exact", "2^3", "23", 0.0),
    ("exact", "& / *", "", 0.0),
]


@pytest.mark.parametrize(("scorer", "answer", "gold", "score"), [*ENGLISH, *TOLD_APART])
def test_scorers_by_hand(scorer: str, answer: str, gold: str, score: float) -> None:
    assert SCORERS[scorer](answer, gold) == pytest.approx(score)


def test_ordinary_english_is_compared_as_by_the_script_of_squad() -> None:
    """The normal form of evaluate-v1.1.py on the prose that is shipped; texts with numbers are compared otherwise."""
    texts = [each for file in DATA.glob("prose/*.txt") for each in re.split(r"(?<=[.!?])\s+", file.read_text("utf-8"))]
    compared = [each for each in texts if not re.search(r"\d", each)]
    assert len(compared) > 200
    for text in compared:
        bare = "".join(each for each in text.lower() if each not in string.punctuation)
        assert normalize(text) == re.sub(r"\b(a|an|the)\b", " ", bare).split()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("First 3, then 1,234.50 in all", ["3", "1234.50"]),
        ("1.234.567,8 or 12,34,567", ["1234567.8", "1234567"]),
        ("from 3-5, at -7, for -$2.50, by −1", ["3", "5", "-7", "-2.50", "-1"]),
        ("COVID-19 in 2020", ["19", "2020"]),
        ("1'000'000 and 1_000 and ١٢", ["1000000", "1000", "12"]),
        ("1,5 is .5 more than 1; 1,2,3; 0,500; 2e3", ["1.5", "0.5", "1", "1", "2", "3", "0.500", "2e3"]),
    ],
)
def test_numbers_as_people_write_them(text: str, found: list[str]) -> None:
    assert [plain(each) for each in numbers(text)] == found


@pytest.mark.parametrize("scorer", sorted(SCORERS))
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("[" * 100_000, id="deeply nested"),
        pytest.param("9" * 10_000, id="10,000 digits"),
        pytest.param("7" + ",7" * 5000 + ".", id="many commas"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("``` " * 1000, id="fences"),
        pytest.param("٣.٤ ²", id="other digits"),
    ],
)
def test_hostile_answers_score_zero_and_do_not_crash(scorer: str, answer: str) -> None:
    assert SCORERS[scorer](answer, '{"a": 1}') == 0.0
