"""Progress goes forward, a cancel comes back."""

import threading
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest

from workbench import Progress
from workbench.core import progress
from workbench.core.errors import Cancelled, TimeUp, WorkbenchError


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def test_track_yields_every_item_and_counts() -> None:
    made = Progress()
    seen = [(item, made.done) for item in made.track("reading", "abc", 3)]
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert (made.label, made.done, made.total, made.fraction) == ("reading", 3, 3, 1.0)


def test_cancel_takes_effect_at_the_next_report() -> None:
    made = Progress()
    seen = []

    def work() -> None:
        for item in made.track("reading", range(10), 10):
            seen.append(item)
            if item == 2:
                made.cancel()

    with pytest.raises(Cancelled):
        work()
    assert seen == [0, 1, 2]
    assert made.cancelled


def test_cancelled_progress_starts_nothing() -> None:
    made = Progress()
    made.cancel()
    for report in (made.check, made.advance, lambda: made.start("again", 1)):
        with pytest.raises(Cancelled, match="nothing was changed"):
            report()


def test_work_is_given_so_long(clock: Clock) -> None:
    progress = Progress()
    with progress.within(10.0), progress.within(100.0):  # never longer than what is around it
        progress.check()
        clock.now += 11
        with pytest.raises(TimeUp):
            progress.advance()
    progress.check()


def test_cancelled_is_one_of_ours() -> None:
    assert issubclass(Cancelled, WorkbenchError)


def test_listener_hears_five_times_a_second_at_most(clock: Clock) -> None:
    heard: list[int] = []
    made = Progress(lambda each: heard.append(each.done))
    made.start("packing", 1000)
    for _ in range(999):
        clock.now += 0.002
        made.advance()
    assert heard[0] == 0
    assert 5 <= len(heard) <= 1 + 10  # two seconds of work


def test_listener_hears_the_end(clock: Clock) -> None:
    heard: list[int] = []
    made = Progress(lambda each: heard.append(each.done))
    made.start("packing", 3)
    for _ in range(3):
        made.advance()
    assert heard[-1] == 3


def test_eta_is_the_pace_times_what_is_left(clock: Clock) -> None:
    made = Progress()
    made.start("packing", 10)
    assert made.eta is None
    clock.now += 4
    made.advance(2)
    assert made.eta == pytest.approx(16.0)
    assert made.fraction == pytest.approx(0.2)


def test_fraction_stays_within_bounds() -> None:
    made = Progress()
    assert made.fraction == 0.0
    made.start("packing", 2)
    made.advance(5)
    assert made.fraction == 1.0
    assert made.eta == 0.0


def test_a_pause_is_reported_once() -> None:
    seen: list[bool] = []
    held = Progress(lambda shown: seen.append(shown.paused))
    held.start("Training", 10)
    held.pause()
    held.advance()  # too soon after the report before it
    threading.Timer(5 * progress.SCREEN_INTERVAL, held.pause, [False]).start()
    held.wait()
    assert seen == [False, True]


def test_the_last_report_before_a_silence_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SCREEN_INTERVAL", 0.05)
    heard: list[int] = []
    told = threading.Event()

    def listen(shown: Progress) -> None:
        heard.append(shown.done)
        if shown.done == 3:
            told.set()

    made = Progress(listen)
    made.start("packing", 100)
    for _ in range(3):
        made.advance()  # all of them right behind the start, and then nothing for long
    assert told.wait(10)
    assert heard[0] == 0
    assert heard[-1] == 3


class Timers:
    """Timers that go off when a test turns the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, call: Callable[[], None]) -> SimpleNamespace:
        due = self.clock.now + seconds
        return SimpleNamespace(start=lambda: self.waiting.append((due, call)))

    def turn(self, seconds: float) -> None:
        """Let time pass, and everything go off that is due by then."""
        self.clock.now += seconds
        due = [each for each in self.waiting if each[0] <= self.clock.now]
        self.waiting = [each for each in self.waiting if each not in due]
        for _, call in due:
            call()


@pytest.fixture
def timers(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Timers:
    made = Timers(clock)
    monkeypatch.setattr(progress.threading, "Timer", made)
    return made


def test_nothing_is_made_up_for_beside_what_is_timed(timers: Timers) -> None:
    heard: list[int] = []
    made = Progress(lambda shown: heard.append(shown.done))
    made.start("Timing", 10, undisturbed=True)
    made.advance()
    timers.turn(1.0)
    assert heard == [0]
    made.start("Scoring", 10)
    made.advance()
    timers.turn(1.0)
    assert heard == [0, 0, 1]


def test_what_was_made_up_for_is_not_repeated(timers: Timers) -> None:
    calls: list[float] = []
    throttle = progress.Throttle(lambda: calls.append(timers.clock.now))
    throttle()
    throttle()
    throttle(force=True)  # which says what the held one would have said
    timers.turn(1.0)
    assert len(calls) == 2
    for _ in range(200):
        throttle()
        timers.turn(0.01)
    timers.turn(1.0)
    assert all(after - before >= 0.199 for before, after in pairwise(calls[2:]))
    assert len(calls) > 4
    assert timers.waiting == []


def test_one_bar_over_all_parts_of_a_work(clock: Clock) -> None:
    made, bars = Progress(), list[float]()
    with made.whole([10, 30]) as following:
        following()
        assert made.eta is None
        for _ in range(2):  # two stages in one part: the bar stays where it was
            for _ in made.track("reading", range(5), 5):
                clock.now += 2
                bars.append(made.fraction)
        following()
        made.start("timing", 3)
        assert made.fraction == pytest.approx(0.25)
        assert made.eta == pytest.approx(20 / 10 * 30)
        with made.whole([1, 1]) as inner:
            inner()
            clock.now += 20
            made.advance()
        bars.append(made.fraction)
        assert made.fraction == pytest.approx(0.5)
        assert made.eta == pytest.approx(40)
    assert bars == sorted(bars)
    made.start("alone", 2)
    assert made.fraction == 0
