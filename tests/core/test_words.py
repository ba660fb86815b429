"""Words, sentences and normal forms of texts in many scripts."""

import pytest

from workbench.core.sentences import sentences
from workbench.core.words import compatible, composed, mended, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello, big  world. ", ["Hello,", " big", "  world. "]),
        (
            "\u7b2c37\u53f7\u505c\u7740\u8239\u3002\u597d",
            ["\u7b2c", "37", "\u53f7", "\u505c", "\u7740", "\u8239\u3002", "\u597d"],
        ),
        ("\u6771\u4eacTower", ["\u6771", "\u4eac", "Tower"]),
        # twelve letters of Thai without their marks: three words' worth
        ("\u0e01\u0e02\u0e04\u0e07" * 3, ["\u0e01\u0e02\u0e04\u0e07"] * 3),
        ("cafe\u0301 \u0939\u093f\u0928\u094d\u0926\u0940", ["cafe\u0301", " \u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("a" * 40, ["a" * 40]),
        ("a" * 64, ["a" * 12, "a" * 12, "a" * 40]),
        ("-" * 500, ["-" * 500]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_of_any_script(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    "text", [" " * 300_000, "." * 300_000 + "x", "x" * 300_000, "\u5b57" * 100_000, "\u0301" * 100_000]
)
def test_long_texts_are_read_once(text: str) -> None:
    assert "".join(words(text)) == text.strip()
    assert "".join(sentences(text)) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\u4f60\u597d\u3002\u6211\u662f", ["\u4f60\u597d\u3002", "\u6211\u662f"]),
        (
            "\u201c\u597d\u3002\u201d\u4ed6\uff01\uff1f\u5bf9",
            ["\u201c\u597d\u3002\u201d", "\u4ed6\uff01\uff1f", "\u5bf9"],
        ),
        ("\u300c\u306f\u3044\u3002\u300d\u3068", ["\u300c\u306f\u3044\u3002\u300d", "\u3068"]),
        ("\u092f\u0939\u0964 \u0935\u0939", ["\u092f\u0939\u0964 ", "\u0935\u0939"]),
        ("\u0647\u0644\u061f \u0646\u0639\u0645", ["\u0647\u0644\u061f ", "\u0646\u0639\u0645"]),
        ("Dr. Hale is in, e.g. here! 3.14 is pi. Yes", ["Dr. Hale is in, e.g. here! ", "3.14 is pi. ", "Yes"]),
        ("\u0e2a\u0e27\u0e31\u0e2a \u0e14\u0e35", ["\u0e2a\u0e27\u0e31\u0e2a \u0e14\u0e35"]),
    ],
)
def test_sentences_of_any_script(text: str, found: list[str]) -> None:
    assert sentences(text) == found


def test_one_form_for_characters_that_say_the_same() -> None:
    assert composed("cafe\u0301") == "caf\u00e9"
    assert compatible("\uff11\uff12 \uff76\uff9e \ufb01 e\u0301") == "12 \u30ac fi \u00e9"
    assert compatible("10\u00b2 \u00bd") == "10\u00b2 \u00bd"


def test_half_characters_are_replaced() -> None:
    assert mended("hi \ud83d!") == "hi \ufffd!"
    assert mended("\ud83d\ude00") == "\U0001f600"
    assert mended(("a", "\ude00")) == ("a", "\ufffd")
    assert mended(3) == 3
