"""Progress and cancellation: work reports forward, a cancel request travels back, both through one object."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from workbench.core.errors import Cancelled, TimeUp

T = TypeVar("T")
SCREEN_INTERVAL = 0.2  # seconds: reports reach the screen at most five times a second


class Throttle:
    """Calls something at most five times a second, and once more if the last call of all was held back.

    Args:
        call: what is called, in the thread that asks for it; after a silence, in one of its own.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._last = -SCREEN_INTERVAL
        self._held = self._watched = False

    def __call__(self, force: bool = False, late: bool = True) -> None:
        """Call it, or hold the call back; a forced one is never held back.

        Args:
            force: whatever was called just before.
            late: whether a call that is held back may be made up for later.
        """
        with self._lock:
            early = not force and time.monotonic() - self._last < SCREEN_INTERVAL
            self._held = early and late
            if early:
                if late:
                    self._watch()
                return
            self._last = time.monotonic()
        self._call()

    def _watch(self) -> None:
        """See after a while whether the held call is still to be made."""
        if not self._watched:
            self._watched = True
            timer = threading.Timer(1.5 * SCREEN_INTERVAL, self._make_up)
            timer.daemon = True
            timer.start()

    def _make_up(self) -> None:
        with self._lock:
            self._watched = False
            if not self._held:
                return
            if time.monotonic() - self._last < SCREEN_INTERVAL:  # others were made meanwhile
                self._watch()
                return
            self._held, self._last = False, time.monotonic()
        self._call()


class _Whole:
    """Parts of one piece of work, and how long each was thought to take beside the others."""

    def __init__(self, expected: Sequence[float]) -> None:
        self._expected = [max(0.0, each) for each in expected]
        self._begun = -1
        self._before = self._farthest = self._shown = 0.0  # expected time that has passed, and the bar
        self._started = time.monotonic()

    def following(self) -> None:
        """Begin the next part."""
        self._before = sum(self._expected[: self._begun + 1])
        self._farthest = self._before
        self._begun += 1

    def _done(self, stage: float) -> float:
        """Expected time of what is done; a part of several stages does not go back to its beginning."""
        part = self._expected[self._begun] if 0 <= self._begun < len(self._expected) else 0.0
        self._farthest = max(self._farthest, self._before + part * stage)
        return self._farthest

    def eta(self, stage: float) -> float | None:
        """Seconds until all is done, at the pace so far."""
        done = self._done(stage)
        if not done:
            return None
        return (time.monotonic() - self._started) / done * max(0.0, sum(self._expected) - done)

    def fraction(self, stage: float) -> float:
        """Share of all that is done; it never shrinks."""
        total = sum(self._expected)
        self._shown = max(self._shown, min(1.0, self._done(stage) / total if total else 0.0))
        return self._shown


class Progress:
    """How far a piece of work is, and whether it has been asked to stop.

    Attributes:
        live: what the work shows of itself while it runs, such as a training curve; None if nothing.
        undisturbed: whether the stage is one that is timed, beside which nothing may be drawn.

    Args:
        listener: called with this object at most five times a second, and at the end of every stage; in the thread of
            the work or, for the last report before a silence, a moment later in another, when the work may have ended.
    """

    def __init__(self, listener: Callable[["Progress"], None] | None = None) -> None:
        self.label = ""
        self.done = 0
        self.total = 0
        self.undisturbed = False
        self._throttle = Throttle(lambda: listener(self)) if listener else None
        self.live: Any = None
        self._cancel = threading.Event()
        self._paused = threading.Event()
        self._stop = threading.Event()
        self._until = math.inf
        self._started = time.monotonic()
        self._whole: _Whole | None = None

    @contextmanager
    def whole(self, expected: Sequence[float]) -> Iterator[Callable[[], None]]:
        """Work of several parts with one bar and one forecast over all of them, whatever stages each has.

        What is within another whole is a part of that one.

        Args:
            expected: how long each part takes, in seconds or any other unit; the pace of those done corrects it.

        Yields:
            What is called when a part begins, the first one included.
        """
        if self._whole is not None:
            yield lambda: None
            return
        self._whole = _Whole(expected)
        try:
            yield self._whole.following
        finally:
            self._whole = None

    def start(self, label: str, total: int, undisturbed: bool = False) -> None:
        """Begin a stage of ``total`` units."""
        self.check()
        self.label, self.total, self.done, self.undisturbed = label, total, 0, undisturbed
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
        if self.paused:
            self._show(force=False)
        while self.paused and not self.cancelled and not self.stopping:
            time.sleep(SCREEN_INTERVAL / 4)
        self.check()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Work that is given so long: its next report after that raises `TimeUp`."""
        before, self._until = self._until, min(self._until, time.monotonic() + seconds)
        try:
            yield
        finally:
            self._until = before

    def check(self) -> None:
        """Raise `Cancelled` when a cancel was requested, or `TimeUp`."""
        if self._cancel.is_set():
            raise Cancelled
        if time.monotonic() > self._until:
            raise TimeUp

    @property
    def fraction(self) -> float:
        """Share that is done of the whole work where its parts are known, else of the current stage, 0 to 1."""
        if self._whole is not None:
            return self._whole.fraction(self._stage)
        return self._stage

    @property
    def _stage(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds that are still needed for what `fraction` is a share of, or None before the first unit."""
        if self._whole is not None:
            return self._whole.eta(self._stage)
        if not self.done or not self.total:
            return None
        return (time.monotonic() - self._started) / self.done * max(0, self.total - self.done)

    def _show(self, force: bool) -> None:
        if self._throttle:
            self._throttle(force, late=not self.undisturbed)
