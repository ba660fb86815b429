"""Progress and cancellation: work reports forward, a cancel request travels back, both through one object."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from workbench.errors import Cancelled

T = TypeVar("T")
SCREEN_INTERVAL = 0.2  # seconds: reports reach the screen at most five times a second


class Progress:
    """How far a piece of work is, and whether it has been asked to stop.

    Attributes:
        live: what the work shows of itself while it runs, such as a training curve; None if nothing.

    Args:
        listener: called with this object at most five times a second, and at the end of every stage.
    """

    def __init__(self, listener: Callable[["Progress"], None] | None = None) -> None:
        self.label = ""
        self.done = 0
        self.total = 0
        self._listener = listener
        self.live: Any = None
        self._cancel = threading.Event()
        self._paused = threading.Event()
        self._stop = threading.Event()
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

    def pause(self, paused: bool = True) -> None:
        """Ask the work to wait, where it can, or to go on."""
        (self._paused.set if paused else self._paused.clear)()

    @property
    def paused(self) -> bool:
        """Whether a pause was requested."""
        return self._paused.is_set()

    def stop(self) -> None:
        """Ask the work to end early and keep what it has, where it can."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether an early end was requested."""
        return self._stop.is_set()

    def wait(self) -> None:
        """Return at once, or when a pause is over; raises `Cancelled` when a cancel was requested."""
        until = time.monotonic() + 1.5 * SCREEN_INTERVAL
        untold = True
        while self.paused and not self.cancelled and not self.stopping:
            time.sleep(SCREEN_INTERVAL / 4)
            # Once, and late enough not to be held back: the report before it may have come just before the pause.
            if untold and time.monotonic() >= until:
                untold = False
                self._show(force=True)
        self.check()

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
