"""Plain text in any script: whole characters, one normal form, and words where no space tells them apart.

Properties of characters are those of Unicode, as `regex` knows them; transformers brings that library along.
"""

import unicodedata
from typing import Any

import regex

# Scripts written without spaces: Chinese, Japanese, and those whose lines only a dictionary could break (Unicode's line
# breaking class SA), such as Thai, Lao, Khmer and Burmese.
IDEOGRAPHS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ー々"
SOUTH_EAST = r"\p{LB=SA}"
LONG = 40  # letters; what is longer is no word but a line without spaces, such as minified JSON
PART = 12  # letters of such a line that count as one word
_PIECE = regex.compile(
    rf"\s*+(?:[{IDEOGRAPHS}]\p{{M}}*[^\w\s]*"  # a character is about a word's worth of tokens
    rf"|{SOUTH_EAST}\p{{M}}*(?:{SOUTH_EAST}\p{{M}}*){{0,3}}[^\w\s]*"  # so are four letters
    rf"|([^\w\s])\1{{{LONG},}}+"  # a ruled line
    rf"|[^\s{IDEOGRAPHS}{SOUTH_EAST}]{{1,{LONG}}}+(?![^\s{IDEOGRAPHS}{SOUTH_EAST}])"
    rf"|[^\s{IDEOGRAPHS}{SOUTH_EAST}]{{1,{PART}}})(?:\s++\Z)?"
)
_NOT_COMPATIBLE = ("<super>", "<sub>", "<fraction>")  # as plain digits they would say something else: 10² is not 102


def words(text: str) -> list[str]:
    """A text in words, each with the space before it; joined, they are the text, unless it is all space.

    Where spaces tell words apart, a word is what they say. In scripts without them it is a character of Chinese or
    Japanese, or four letters of Thai and its like; a longer row of other characters than any word counts as several.
    That is a measure of length, and says where a text may be cut; it is no dictionary.
    """
    return (
        [] if text.isspace() else [found[0] for found in _PIECE.finditer(text)]
    )  # nothing but spaces would be read over and over


def mended(value: Any) -> Any:
    """A text without half characters, or a list of such texts; anything else is given back as it is.

    Half a surrogate pair, as JavaScript leaves it where it cuts an emoji in two, is no text that could be written or
    tokenized. It becomes the replacement character U+FFFD, as everywhere on the web (https://encoding.spec.whatwg.org).
    """
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    elif isinstance(value, list | tuple) and any(isinstance(each, str) for each in value):
        return type(value)(map(mended, value))
    return value


def composed(text: str) -> str:
    """A text in Unicode's normal form C: an é is one character, however it was typed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def compatible(text: str) -> str:
    """A text in which characters that differ only in form are the same: full width and half width, ligatures.

    That is Unicode's normal form KC, except that superscripts, subscripts and fractions stay what they are.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", "".join(map(_compatible, text)))


def _compatible(character: str) -> str:
    kept = unicodedata.decomposition(character).startswith(_NOT_COMPATIBLE)
    return character if kept else unicodedata.normalize("NFKC", character)
