"""What a service has done and does now, by replica: for people, for Prometheus and for whoever routes requests."""

from collections import Counter, deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import quantiles
from time import monotonic
from typing import Any

import prometheus_client as prometheus

RECENT = 500  # answers that the percentiles are of
MOST_ENDED = 20  # replicas that are no more and still shown
SECONDS = 60.0  # that a rate is of
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass
class Going:
    """A request from when it was read.

    Attributes:
        started: on the clock of `monotonic`.
        replica: who answers; empty while nobody does.
        first: seconds to its first token.
        over: whether it has ended.
    """

    started: float = field(default_factory=monotonic)
    replica: str = ""
    first: float | None = None
    over: bool = False


@dataclass
class Seat:
    """One replica.

    Attributes:
        process: its number on its machine.
        going: requests that it answers now.
        began: when it was first heard of.
        recent: of each of its newest answers, when it ended, seconds to the first token and to the last, and tokens.
        lost: whether it has ended, or died.
    """

    process: int = 0
    going: int = 0
    done: int = 0
    failed: int = 0
    tokens: int = 0
    lost: bool = False
    began: float = field(default_factory=monotonic)
    recent: deque[tuple[float, float, float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def shown(self, now: float) -> dict[str, Any]:
        """Counts, and percentiles of the newest answers in seconds."""
        last = [each for each in self.recent if now - each[0] < SECONDS]
        since = self.recent[0][0] if len(self.recent) == RECENT else self.began
        spent = min(SECONDS, max(1.0, now - since))
        found: dict[str, Any] = {
            "process": self.process,
            "lost": self.lost,
            "in_flight": self.going,
            "done": self.done,
            "failed": self.failed,
            "tokens": self.tokens,
            "tokens_per_second": sum(each[3] for each in last) / spent,
        }
        for name, part in (("ttft", 1), ("latency", 2)):
            times = [each[part] for each in self.recent]
            cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
            found[name] = {f"p{n}": cuts[n - 1] for n in (50, 95, 99)} if cuts else {}
        return found


class Board:
    """Counts every request once, from when it was read to its end."""

    def __init__(self) -> None:
        self.seats: dict[str, Seat] = {}
        self.waiting = 0
        self.statuses: Counter[int] = Counter()
        self._registry = prometheus.CollectorRegistry()
        common: dict[str, Any] = {"namespace": "workbench", "registry": self._registry}
        self._requests = prometheus.Counter("requests", "Requests answered or refused", ["status"], **common)
        self._tokens = prometheus.Counter("tokens", "Tokens read and written", ["kind"], **common)
        self._first = prometheus.Histogram(
            "time_to_first_token_seconds", "From the request to its first token", ["replica"], buckets=BUCKETS, **common
        )
        self._whole = prometheus.Histogram(
            "request_seconds", "From the request to its end", ["replica"], buckets=BUCKETS, **common
        )
        self._going = prometheus.Gauge("requests_in_flight", "Requests that a replica answers", ["replica"], **common)
        self._queue = prometheus.Gauge("requests_waiting", "Requests that no replica answers yet", **common)

    def enter(self) -> Going:
        """A request was read."""
        self.waiting += 1
        return Going()

    def seat(self, going: Going, replica: str, process: int) -> None:
        """A replica took it."""
        self.waiting -= 1
        going.replica = replica
        seat = self.seats.setdefault(replica, Seat())
        seat.process = process
        seat.going += 1

    def lose(self, going: Going) -> None:
        """The replica that took it has died: it waits again."""
        if going.replica:
            self.waiting += 1
            self.seats[going.replica].going -= 1
            self.seats[going.replica].lost = True
            going.replica = ""

    def spoke(self, going: Going) -> None:
        """Its first token came."""
        if going.first is None:
            going.first = monotonic() - going.started

    def leave(self, going: Going, status: int, prompt_tokens: int = 0, answer_tokens: int = 0) -> None:
        """It ended, with a status of HTTP; 499 where nobody waited any more. Only the first end counts."""
        if going.over:
            return
        going.over, now = True, monotonic()
        self.statuses[status] += 1
        self._requests.labels(str(status)).inc()
        if not going.replica:
            self.waiting -= 1
            return
        seat = self.seats[going.replica]
        seat.going -= 1
        if status != 200:
            seat.failed += 1
            return
        seat.done += 1
        seat.tokens += answer_tokens
        whole = now - going.started
        seat.recent.append((now, going.first or whole, whole, answer_tokens))
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("answer").inc(answer_tokens)
        self._first.labels(going.replica).observe(going.first or whole)
        self._whole.labels(going.replica).observe(whole)

    def shown(self, running: Collection[str]) -> dict[str, Any]:
        """All of it, for people.

        Args:
            running: the replicas that there are now, whether or not they have answered.
        """
        now = monotonic()
        for name, seat in self.seats.items():
            seat.lost = name not in running
        for name in running:
            self.seats.setdefault(name, Seat())
        ended = [name for name, seat in self.seats.items() if seat.lost and not seat.going]
        for name in ended[:-MOST_ENDED]:
            del self.seats[name]
            for each in (self._first, self._whole, self._going):
                with suppress(KeyError):
                    each.remove(name)
        return {
            "waiting": self.waiting,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "replicas": {name: seat.shown(now) for name, seat in sorted(self.seats.items())},
        }

    def exposition(self) -> bytes:
        """All of it, as Prometheus reads it."""
        self._queue.set(self.waiting)
        for name, seat in self.seats.items():
            self._going.labels(name).set(seat.going)
        return prometheus.generate_latest(self._registry)
