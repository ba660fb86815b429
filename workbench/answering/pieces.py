"""The text of an answer piece by piece, as its tokens come."""

import re
from collections.abc import Sequence
from typing import Final, Protocol

from transformers import PreTrainedTokenizerBase

UNFINISHED: Final = "\ufffd"  # stands for bytes that are no character, or not one yet
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how tokenizers with byte fallback spell a byte
WINDOW, CONTEXT = 64, 16  # tokens that are decoded again for every new one, at most and at least


class Speller(Protocol):
    """Knows the text of tokens."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Turns text into tokens."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""


class Pieces:
    """What every token adds to a text. The pieces, and at the end what is left, are together the whole text.

    Some characters take several tokens of a byte, and some bytes are no character at all. With byte fallback a further
    byte may even undo a character, since a row of bytes is read as a whole. So what may still change is held back until
    something else follows.

    Args:
        speller: whose tokens they are.
    """

    def __init__(self, speller: Speller) -> None:
        self._speller = speller
        self._tokens: list[int] = []  # the last of them; those before are not looked at again
        self._said = ""  # of their text
        self.text = ""

    def add(self, token: int) -> str:
        """What a token adds; empty while its character is incomplete."""
        self._tokens.append(token)
        text = self._speller.decode(self._tokens)
        spelled = str(self._speller.tokenizer.convert_ids_to_tokens(token))
        if text.endswith(UNFINISHED) or BYTE.fullmatch(spelled) or not text.startswith(self._said):
            return ""
        more, self._said = text[len(self._said) :], text
        self.text += more
        if len(self._tokens) > WINDOW:
            self._forget()
        return more

    def rest(self, text: str) -> str:
        """What was held back of the whole text."""
        more = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += more
        return more

    def _forget(self) -> None:
        """Keep the last tokens, if their text by itself is what it was among the others."""
        last = self._tokens[-CONTEXT:]
        text = self._speller.decode(last)
        if text and self._said.endswith(text):
            self._tokens, self._said = last, text
