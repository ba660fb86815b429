"""Progress and cancellation: work reports forward, a cancel request travels back, both through one object."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from workbench.errors import Cancelled

T = TypeVar("T")
SCREEN_INTERVAL = 0.2  # seconds: reports reach the screen at most five times a second


class Progress:
    """How far a piece of work is, and whether it has been asked to stop.

    Args:
        listener: called with this object at most five times a second, and at the end of every stage.
    """

    def __init__(self, listener: Callable[["Progress"], None] | None = None) -> None:
        self.label = ""
        self.done = 0
        self.total = 0
        self._listener = listener
        self._cancel = threading.Event()
        self._started = self._shown = time.monotonic()

    def start(self, label: str, total: int) -> None:
        """Begin a stage of ``total`` units."""
        self.check()
        self.label, self.total, self.done = label, total, 0
        self._started = time.monotonic()
        self._show(force=True)

    def advance(self, units: int = 1) -> None:
        """Report units done; raises `Cancelled` when a cancel was requested."""
        self.done += units
        self._show(force=self.done >= self.total)
        self.check()

    def track(self, label: str, items: Iterable[T], total: int) -> Iterator[T]:
        """Yield the items, advancing one unit after each."""
        self.start(label, total)
        for item in items:
            yield item
            self.advance()

    def cancel(self) -> None:
        """Ask the work to stop; it does so at its next report."""
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        """Whether a cancel was requested."""
        return self._cancel.is_set()

    def check(self) -> None:
        """Raise `Cancelled` when a cancel was requested."""
        if self._cancel.is_set():
            raise Cancelled

    @property
    def fraction(self) -> float:
        """Share of the current stage that is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds the current stage still needs, or None before the first unit."""
        if not self.done or not self.total:
            return None
        return (time.monotonic() - self._started) / self.done * max(0, self.total - self.done)

    def _show(self, force: bool) -> None:
        now = time.monotonic()
        if self._listener and (force or now - self._shown >= SCREEN_INTERVAL):
            self._shown = now
            self._listener(self)
