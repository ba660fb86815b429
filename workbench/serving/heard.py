"""What came so far of an answer from outside: its pieces, counted and bounded, whatever the sender claims."""

import time
from typing import Any

from workbench.answering.request import Generation, Piece, Request
from workbench.core.errors import NotAvailable
from workbench.runtime.decoding import Decoding

UNKNOWN = -1  # an endpoint sends texts, not tokens
LONGEST_TOKEN = 256  # characters; the longest of the vocabularies in use, a row of spaces, has 128
TEXTS = ("content", "reasoning_content", "reasoning")  # how servers call what a model says, to the user or to itself


class Heard:
    """An answer as its messages come.

    Args:
        request: what was asked.
        settings: how long the answer may be.
        timeout: seconds after which no more is waited for.
    """

    replica = ""  # which process answers, where the service says so

    def __init__(self, request: Request, settings: Decoding, timeout: float) -> None:
        self._request, self._most, self._timeout = request, settings.max_new_tokens, timeout
        self._started = time.perf_counter()
        self._times: list[float] = []
        self._sizes: list[int] = []  # characters of each piece
        self._size = 0
        self._text: list[str] = []
        self._reason = ""
        self._usage: Any = None

    def take(self, message: Any) -> Piece | None:
        """Read a message; gives a piece where it holds a part of the answer.

        Raises:
            NotAvailable: the answer is longer, or takes longer, than was asked for.
        """
        now = time.perf_counter() - self._started
        if now > self._timeout:
            raise NotAvailable(f"The endpoint went on for more than {self._timeout:g} s: the rest was not read.")
        self._usage = getattr(message, "usage", None) or self._usage
        choices = getattr(message, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        self._reason = str(getattr(choice, "finish_reason", None) or self._reason)
        delta = getattr(choice, "delta", None)
        parts = [getattr(delta, name, None) for name in TEXTS]
        said, *thought = (part if isinstance(part, str) else "" for part in parts)
        size = len(said) + max(map(len, thought))
        if not size:
            return None
        self._times.append(now)
        self._sizes.append(size)
        self._size += size
        self._text.append(said)
        if len(self._times) > self._most or self._size > LONGEST_TOKEN * self._most:
            raise NotAvailable(f"The endpoint sent more than the {self._most} tokens asked for: the rest was not read.")
        return Piece(said, UNKNOWN, now)

    def answer(self) -> Piece:
        """The last piece, with the whole answer.

        Raises:
            NotAvailable: nothing came that is an answer.
        """
        now = time.perf_counter() - self._started
        if not self._times and not self._reason and self._usage is None:
            raise NotAvailable(
                "The endpoint sent nothing that is an answer: see that the address ends as its documentation says, "
                "often in /v1."
            )
        tokens, notes = self._tokens()
        if not self._reason:
            notes.append("It ended without a reason: it may be cut off.")
        text = "".join(self._text)
        return Piece(
            "",
            UNKNOWN,
            now,
            Generation(
                text=text,
                token_ids=(),
                prompt_tokens=_count(self._usage, "prompt_tokens") or 0,
                times=tuple(self._spread(tokens) or [now]),
                finish_reason=self._reason[:40] or "unknown",
                said=text,
                passages=self._request.passages,
                notes=(*self._request.notes, *notes),
                spent=tokens,
                replica=self.replica,
            ),
        )

    def _tokens(self) -> tuple[int, list[str]]:
        """How many the answer has: as the endpoint says, where that can be, else one for every piece."""
        pieces, stated = len(self._times), _count(self._usage, "completion_tokens")
        if stated is None:
            return pieces, ["It did not say how many tokens it spent: each piece is counted as one."]
        if stated > self._most or (pieces and not stated):
            said = f"It says it spent {stated} tokens, which cannot be: each piece is counted as one."
            return pieces, [said]
        return stated, []

    def _spread(self, tokens: int) -> list[float]:
        """When each token came: those of one piece at once, shared out by the pieces' lengths."""
        if tokens <= len(self._times):  # an end token has no text, and some servers cut tokens
            return self._times
        found: list[float] = []
        whole, read = self._size, 0
        spare = tokens - len(self._times)
        for time_, size in zip(self._times, self._sizes, strict=True):
            before, read = read, read + size
            more = round(spare * read / whole) - round(spare * before / whole)
            found += [time_] * (1 + more)
        return found


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens, if it is one."""
    found = getattr(usage, name, None)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
