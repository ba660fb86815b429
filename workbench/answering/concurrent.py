"""Answers to callers that come when they like, from any thread or event loop: one thread decodes for all, in turn."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedModel

from workbench.answering.answers import Answering, Staged, begin
from workbench.answering.request import Generation, Piece, Prompt
from workbench.core.errors import Busy
from workbench.runtime.asks import Ask
from workbench.runtime.decoding import sample_seeds
from workbench.runtime.engine import Engine

Told = list[Piece] | Exception
Who = tuple[PreTrainedModel, Engine]  # answers share a batch when both are the same, whatever the variants' prompts


class Call:
    """A request that somebody waits for.

    Attributes:
        variant: who is asked.
        seconds: spent on it so far, with those that are decoded beside it; the turns of others are left out.
        gone: whether nobody waits any more.

    Args:
        tell: hears what is new, in the thread that decodes: pieces, of which the last brings the answer, or an error.
    """

    def __init__(self, variant: Staged, tell: Callable[[Told], object]) -> None:
        self.variant, self._tell = variant, tell
        self.who: Who = (variant.model, variant.engine)
        self.seconds, self.gone = 0.0, False
        self.asks: list[Ask] = []
        self._going: Answering | None = None
        self.steps: Iterator[None] = iter(())

    def begin(self, prompt: Prompt, decoding: Mapping[str, Any]) -> Piece | None:
        """Let the stages work on the request, in the caller's thread; gives the answer if one of them knows it."""
        going = begin(self.variant, prompt, decoding)
        if isinstance(going, Piece):
            return going
        self._going = going
        seeds = sample_seeds(going.settings.seed, len(going.rows))
        pairs = zip(going.rows, seeds, strict=True)
        self.asks = [Ask(going.asked.ids, going.settings, row, seed) for row, seed in pairs]
        self.steps = going.steps()
        return None

    def report(self, over: bool) -> bool:
        """Tell what is new; gives whether that was all."""
        assert self._going is not None
        try:
            _ = self.variant.model  # raises `Closed` when it was closed meanwhile
            if failed := next((ask.error for ask in self.asks if ask.error), None):
                raise failed
            found = list(self._going.pieces(last=over))
        except Exception as error:
            return self.fail(error)
        if found:
            self._say(found)
        return over or self._going.ended

    def fail(self, error: Exception) -> bool:
        """Tell that there will be no answer."""
        self._say(error)
        return True

    def _say(self, told: Told) -> None:
        try:
            self._tell(told)
        except RuntimeError:  # the event loop that waited was closed
            self.gone = True


class _Table:
    """The calls that one engine answers with one model."""

    def __init__(self, who: Who, label: str) -> None:
        model, engine = who
        self._running, self._most = engine.running(model, label=label, keeps=True), engine.most_rows(model)
        self.calls: list[Call] = []

    def join(self, call: Call) -> None:
        self.calls.append(call)
        if self._running:
            self._running.join(call.asks)

    def turn(self) -> None:
        """One step; whoever it brings something hears of it."""
        try:
            self._turn()
        except Exception as error:  # of ours: whoever waits here hears of it, and other tables go on
            for call in self.calls:
                call.gone = call.fail(error)
            self.calls.clear()

    def _turn(self) -> None:
        self._end([call for call in self.calls if call.gone or (call.variant.closed and call.report(False))])
        if not self.calls:
            return
        if self._running:
            self._step_all()
        else:
            self._step_first()

    def _step_all(self) -> None:
        assert self._running is not None
        started = time.perf_counter()
        try:
            self._running.step()
        except Exception as error:  # of the model itself, which none of them can use
            self._end([call for call in self.calls if call.fail(error)])
            return
        spent = time.perf_counter() - started
        waiting = set(self._running.waiting)
        ended = []
        for call in self.calls:
            if not waiting.issuperset(call.asks):
                call.seconds += spent
            if call.report(all(ask.ended for ask in call.asks)):
                ended.append(call)
        self._end(ended)

    def _step_first(self) -> None:
        """A step of the call whose turn it is, of those that may go on at once."""
        call = self.calls[0]
        started = time.perf_counter()
        try:
            over = next(call.steps, call) is call
        except Exception as error:
            call.fail(error)
            self._end([call])
            return
        call.seconds += time.perf_counter() - started
        if call.report(over):
            self._end([call])
        else:
            self.calls.insert(min(self._most, len(self.calls)) - 1, self.calls.pop(0))

    def _end(self, calls: list[Call]) -> None:
        for call in calls:
            call.gone = True
            call.steps = iter(())
            self.calls.remove(call)
        if self._running:
            self._running.leave(ask for call in calls for ask in call.asks)


class Scheduler:
    """Gives all models a turn each, one step long, in a thread that ends when nothing is left to do."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._open: Counter[Who] = Counter()
        self._new: list[Call] = []
        self._thread: threading.Thread | None = None

    def enter(self, variant: Staged, tell: Callable[[Told], object]) -> Call:
        """Take a place in the queue; `leave` gives it back.

        Raises:
            Busy: it is full.
            Closed: the variant was closed.
        """
        call = Call(variant, tell)
        model, engine = call.who
        most = engine.most_waiting()
        with self._gate:
            if self._open[call.who] >= engine.most_rows(model) + most:
                raise Busy(f"{most} requests wait for '{variant.name}' already: ask again when some were answered.")
            self._open[call.who] += 1
        return call

    def start(self, call: Call) -> None:
        """Answer a call that has begun."""
        with self._gate:
            self._new.append(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="workbench-answers", daemon=True)
                self._thread.start()

    def leave(self, call: Call) -> None:
        """Nobody waits for this call any more."""
        call.gone = True
        with self._gate:
            self._open[call.who] -= 1
            if not self._open[call.who]:
                del self._open[call.who]

    def _work(self) -> None:
        tables: dict[Who, _Table] = {}
        while self._seated(tables):
            for who in list(tables):
                tables[who].turn()
                if not tables[who].calls:
                    del tables[who]

    def _seated(self, tables: dict[Who, _Table]) -> bool:
        """Whether there is anything to do, once the new calls are at their tables."""
        with self._gate:
            new, self._new = self._new, []
            if not new and not tables:
                self._thread = None
                return False
        for call in new:
            try:
                if call.who not in tables:
                    tables[call.who] = _Table(call.who, call.variant.name)
                tables[call.who].join(call)
            except Exception as error:
                call.fail(error)
        return True


SCHEDULER = Scheduler()


async def stream(variant: Staged, prompt: Prompt, decoding: Mapping[str, Any]) -> AsyncIterator[Piece]:
    """What `Variant.astream` does."""
    loop, news = asyncio.get_running_loop(), asyncio.Queue[Told]()
    call = SCHEDULER.enter(variant, lambda told: loop.call_soon_threadsafe(news.put_nowait, told))
    try:
        known = await asyncio.to_thread(call.begin, prompt, decoding)  # stages may look things up, or ask a model
        if known is not None:
            yield known
            return
        SCHEDULER.start(call)
        while True:
            told = await news.get()
            if isinstance(told, Exception):
                raise told
            for piece in told:
                yield piece
                if piece.answer:
                    return
    finally:
        SCHEDULER.leave(call)


async def generate(variant: Staged, prompt: Prompt, decoding: Mapping[str, Any]) -> Generation:
    """What `Variant.agenerate` does."""
    last = None
    async for piece in stream(variant, prompt, decoding):
        last = piece.answer
    assert last is not None
    return last
