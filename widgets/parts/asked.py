"""A request to whoever answers: a variant, decoded in turn with others, or an endpoint, heard in its own thread."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from workbench.answering.concurrent import SCHEDULER, Told
from workbench.answering.request import Piece, Prompt
from workbench.answering.speaker import Respondent
from workbench.variant import Variant


class Asked:
    """One request. It has begun once `start` was called, unless its answer was known; `leave` ends it.

    Attributes:
        looked_up: seconds that its stages took.

    Args:
        who: is asked.
        tell: hears what is new, in whatever thread: pieces, of which the last brings the answer, or an error.
    """

    def __init__(self, who: Respondent, tell: Callable[[Told], object]) -> None:
        self._who, self._tell = who, tell
        self._call = SCHEDULER.enter(who, tell) if isinstance(who, Variant) else None
        self._gone = threading.Event()
        self._started = 0.0
        self.looked_up = 0.0

    @property
    def seconds(self) -> float:
        """Spent on it so far; the turns of others are left out where they are known."""
        return self._call.seconds if self._call else time.perf_counter() - self._started

    def begin(self, prompt: Prompt, decoding: Mapping[str, Any]) -> Piece | None:
        """Let its stages work on it; gives the answer where one knows it."""
        self._started = time.perf_counter()
        self._prompt, self._decoding = prompt, decoding
        known = self._call.begin(prompt, decoding) if self._call else None
        self.looked_up = time.perf_counter() - self._started
        return known

    def start(self) -> None:
        """Have it answered."""
        if self._call:
            SCHEDULER.start(self._call)
        else:
            self._started = time.perf_counter()
            threading.Thread(target=self._hear, name="workbench-endpoint", daemon=True).start()

    def leave(self) -> None:
        """Nobody waits for it any more."""
        self._gone.set()
        if self._call:
            SCHEDULER.leave(self._call)

    def _hear(self) -> None:
        pieces = self._who.stream(self._prompt, **self._decoding)
        try:
            for piece in pieces:
                if self._gone.is_set():
                    return
                self._tell([piece])
        except Exception as error:
            if not self._gone.is_set():
                self._tell(error)
        finally:
            pieces.close()
