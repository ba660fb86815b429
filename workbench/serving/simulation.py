"""Replicas with continuous batching, simulated pass by pass: a queue, a batch that requests join and leave, a router.

Every replica does what `runtime.running` does: it reads a piece of the prompts that wait, or decodes a token for every
row, in turn. Passes between which nothing changes are one event.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from workbench.serving.times import ServiceTimes

POLICIES = ("round robin", "power of two choices", "least loaded", "random")
IDLE, READ, DECODE = range(3)


@dataclass(frozen=True)
class Trace:
    """What became of every request; all arrays ``(requests,)``, in seconds.

    Attributes:
        arrival: when it came.
        first: when its first token came; nan where it was refused.
        end: when its last token came; likewise.
        answers: its tokens.
        replica: who had it.
        busy: seconds that each replica worked.
    """

    arrival: np.ndarray
    first: np.ndarray
    end: np.ndarray
    answers: np.ndarray
    replica: np.ndarray
    busy: tuple[float, ...]


@dataclass
class _Replica:
    """What one of them does at the moment.

    Attributes:
        slower: how many times slower it is than the others.
        waiting: requests that nobody has begun to read.
        reading: those whose prompts are being read, `done` tokens of `total`.
        going: heap of the pass after which an answer ends, and whose it is.
        passes: decoded since the beginning.
        open: requests that it has, whatever it does with them.
        doing: one of idle, read, decode; `count` passes of `unit` seconds since `start`.
        alone: seconds of such a pass, undisturbed.
        event: number of the event that ends it; earlier ones no longer count.
        since: when it last began to work.
    """

    slower: float = 1.0
    waiting: deque[int] = field(default_factory=deque)
    reading: list[int] = field(default_factory=list)
    done: int = 0
    total: int = 0
    going: list[tuple[int, int]] = field(default_factory=list)
    passes: int = 0
    open: int = 0
    doing: int = IDLE
    just_read: bool = False
    start: float = 0.0
    unit: float = 0.0
    alone: float = 0.0
    count: int = 1
    event: int = -1
    since: float = 0.0
    busy: float = 0.0


def simulate(
    times: ServiceTimes,
    arrivals: np.ndarray,
    prompts: np.ndarray,
    answers: np.ndarray,
    *,
    replicas: int = 1,
    policy: str = "least loaded",
    slower: Sequence[float] = (),
    seed: int = 0,
) -> Trace:
    """Let replicas answer requests that come at such times.

    Args:
        times: of each replica.
        arrivals: seconds, in order ``(requests,)``.
        prompts: tokens of every prompt ``(requests,)``.
        answers: tokens of every answer, at least 1 ``(requests,)``.
        replicas: how many.
        policy: who gets a request, one of `POLICIES`.
        slower: how many times slower the first replicas are than their times; the others are not.
        seed: of the router's choices.
    """
    fleet = _Fleet(times, prompts, answers, replicas, slower)
    choices = _choices(fleet.replicas, policy, len(arrivals), seed)
    whose, refused, most = np.zeros(len(arrivals), int), np.zeros(len(arrivals), bool), times.rows + times.waiting
    events, at = fleet.events, 0
    moments = arrivals.tolist()
    while at < len(moments) or events:
        if at < len(moments) and (not events or moments[at] <= events[0][0]):
            whose[at] = choice = choices(at)
            refused[at] = fleet.replicas[choice].open >= most
            if not refused[at]:
                fleet.arrive(moments[at], fleet.replicas[choice], at)
            at += 1
        else:
            now, event, index = heapq.heappop(events)
            if fleet.replicas[index].event == event:
                fleet.ended(now, fleet.replicas[index])
    first, end = np.array(fleet.first) + times.overhead, np.array(fleet.end) + times.overhead
    return Trace(arrivals, first, end, answers, whose, tuple(each.busy for each in fleet.replicas))


def _choices(replicas: Sequence[_Replica], policy: str, requests: int, seed: int) -> Callable[[int], int]:
    """A function of a request's number that says which replica gets it."""
    count, drawn = len(replicas), np.random.default_rng(seed)
    if policy == "round robin" or count == 1:
        return lambda at: at % count
    if policy == "least loaded":
        numbers = range(count)
        return lambda at: min(numbers, key=lambda index: (replicas[index].open, (index - at) % count))
    one: list[int] = drawn.integers(0, count, requests).tolist()
    if policy == "random":
        return one.__getitem__
    other: list[int] = drawn.integers(1, count, requests).tolist()

    def better(at: int) -> int:
        """The less loaded one of two that are drawn."""
        first, second = one[at], (one[at] + other[at]) % count
        return first if replicas[first].open <= replicas[second].open else second

    return better


class _Fleet:
    """The replicas and their next events."""

    def __init__(
        self, times: ServiceTimes, prompts: np.ndarray, answers: np.ndarray, replicas: int, slower: Sequence[float]
    ) -> None:
        most = max(int(prompts.max(initial=1)), times.chunk)
        self._read: list[float] = [0.0, *times.reading(np.arange(1, most + 1)).tolist()]
        self._gap: list[float] = [0.0, *times.token(np.arange(1, times.rows + 1)).tolist()]
        self._rows, self._chunk = times.rows, times.chunk
        self._prompts, self._answers = prompts.tolist(), answers.tolist()
        self._contention = (1.0, *(times.contention or (1.0,) * replicas))
        self._contended = bool(times.contention)
        self._busy = self._event = 0
        self.replicas = [_Replica(slower[each] if each < len(slower) else 1.0) for each in range(replicas)]
        self._index = {id(each): index for index, each in enumerate(self.replicas)}
        self.events: list[tuple[float, int, int]] = []
        self.first = [float("nan")] * len(self._answers)
        self.end = [float("nan")] * len(self._answers)

    def arrive(self, now: float, replica: _Replica, request: int) -> None:
        """A request comes to a replica, which looks at it when its pass has ended."""
        replica.waiting.append(request)
        replica.open += 1
        if replica.doing == IDLE:
            replica.since = now
            self._count_busy(now, 1)
            self._plan(now, replica)
        elif replica.doing == DECODE and replica.count > 1 and len(replica.going) < self._rows:
            gone = max(1, ceil((now - replica.start) / replica.unit - 1e-9))
            if gone < replica.count:
                replica.count = gone
                self._put(replica)

    def ended(self, now: float, replica: _Replica) -> None:
        """The passes of a replica are over: tokens have come."""
        if replica.doing == DECODE:
            replica.passes += replica.count
            while replica.going and replica.going[0][0] <= replica.passes:
                self._over(now, replica, heapq.heappop(replica.going)[1])
        elif replica.done >= replica.total:
            for request in replica.reading:
                self.first[request] = now
                if self._answers[request] > 1:
                    heapq.heappush(replica.going, (replica.passes + self._answers[request] - 1, request))
                else:
                    self._over(now, replica, request)
            replica.reading = []
        self._plan(now, replica)

    def _over(self, now: float, replica: _Replica, request: int) -> None:
        self.end[request] = now
        replica.open -= 1

    def _plan(self, now: float, replica: _Replica) -> None:
        """What a replica does next."""
        readable = bool(replica.reading) or (bool(replica.waiting) and len(replica.going) < self._rows)
        if readable and not (replica.just_read and replica.going):
            replica.doing, replica.just_read, replica.count = READ, True, 1
            replica.alone = self._piece(replica)
        elif replica.going:
            replica.doing, replica.just_read = DECODE, False
            replica.count = 1 if readable else replica.going[0][0] - replica.passes
            replica.alone = self._gap[len(replica.going)]
        else:
            replica.doing, replica.just_read = IDLE, False
            replica.busy += now - replica.since
            self._count_busy(now, -1)
            return
        replica.start = now
        replica.unit = replica.alone * replica.slower * self._contention[self._busy]
        self._put(replica)

    def _piece(self, replica: _Replica) -> float:
        """Seconds of the next piece of prompts: short ones that wait are read together, long ones in pieces."""
        if not replica.reading:
            longest = 0
            while replica.waiting and len(replica.going) + len(replica.reading) < self._rows:
                longer = max(longest, self._prompts[replica.waiting[0]])
                if replica.reading and longer * (len(replica.reading) + 1) > self._chunk:
                    break
                longest = longer
                replica.reading.append(replica.waiting.popleft())
            replica.done, replica.total = 0, longest * len(replica.reading)
        before = replica.done
        replica.done = min(replica.total, before + self._chunk)
        again = self._gap[1] if before and replica.going else 0.0  # beside others, every piece is a pass of its own
        return again + self._read[replica.done] - self._read[before]

    def _put(self, replica: _Replica) -> None:
        self._event += 1
        replica.event = self._event
        moment = replica.start + replica.count * replica.unit
        heapq.heappush(self.events, (moment, self._event, self._index[id(replica)]))

    def _count_busy(self, now: float, more: int) -> None:
        """One more or fewer is busy: on one machine, the passes that go on become slower or faster."""
        self._busy += more
        if not self._contended:
            return
        for each in self.replicas:
            if each.doing != IDLE and each.alone:
                unit = each.alone * each.slower * self._contention[self._busy]
                each.start = now - (now - each.start) * unit / each.unit
                each.unit = unit
                self._put(each)
