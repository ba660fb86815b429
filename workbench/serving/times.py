"""How long a replica takes to read a prompt, and from token to token by its rows: given, measured or fitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, field_validator

from workbench.core.errors import InvalidInput
from workbench.core.value import Value
from workbench.measurement.batching import Batching
from workbench.runtime.running import CHUNK

Points = tuple[tuple[int, float], ...]
SHARES = np.linspace(0.0, 1.0, 201)  # of a pass with one row, by which one with another row may be longer


class Sample(NamedTuple):
    """A request that was answered; any sequence of these six numbers will do.

    Attributes:
        arrival: seconds on any clock.
        first: when its first token came, on the same clock.
        end: when its last token came.
        prompt: tokens of its prompt.
        answer: tokens of its answer.
        replica: who answered.
    """

    arrival: float
    first: float
    end: float
    prompt: int
    answer: int
    replica: int = 0


class ServiceTimes(Value):
    """What one replica with continuous batching takes.

    Attributes:
        read: seconds that reading a prompt takes by its tokens; lines between the points, and on behind the last.
        gap: seconds from one token of every row to its next, by rows; likewise.
        rows: answered side by side at most.
        waiting: requests that may wait for a row of a replica; further ones are refused.
        chunk: tokens of prompts read between two tokens of the others.
        overhead: seconds that a request takes besides, during which the replica does other things.
        contention: how many times slower each replica is when 1, 2, 3 ... of one machine are busy; empty where they do
            not disturb each other.
        source: where the times are from.
    """

    read: Points
    gap: Points
    rows: int = Field(default=16, ge=1, le=4096)
    waiting: int = Field(default=100, ge=0, le=10_000_000)
    chunk: int = Field(default=CHUNK, ge=1, le=1 << 20)
    overhead: float = Field(default=0.0, ge=0, le=3600)
    contention: tuple[float, ...] = ()
    source: str = Field(default="given", max_length=300)

    @field_validator("read", "gap")
    @classmethod
    def _points(cls, value: Points) -> Points:
        if not value or any(at < 1 or not 0 <= seconds <= 3600 for at, seconds in value):
            raise InvalidInput("Times are points such as (128, 0.4): a number from 1 and seconds from 0 to 3600.")
        found = tuple(sorted(value))
        if any(a[0] == b[0] or a[1] > b[1] for a, b in pairwise(found)):
            raise InvalidInput("Times must not fall with more tokens or rows, and each number comes once.")
        return found

    @field_validator("gap")
    @classmethod
    def _takes_time(cls, value: Points) -> Points:
        if min(value)[1] <= 0:
            raise InvalidInput("From token to token some time must pass.")
        return value

    @field_validator("contention")
    @classmethod
    def _slower(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0.01 <= each <= 1000 for each in value):
            raise InvalidInput("Contention is how many times slower each replica is, such as (1.0, 1.3).")
        return value

    def reading(self, tokens: "np.ndarray | float") -> np.ndarray:
        """Seconds that prompts of so many tokens take alone."""
        return _line(self.read, np.asarray(tokens, float))

    def token(self, rows: "np.ndarray | float") -> np.ndarray:
        """Seconds from token to token with so many rows."""
        return _line(self.gap, np.asarray(rows, float))

    def but(self, **changes: Any) -> Self:
        """The same with some fields changed."""
        return self.model_copy(update=changes)

    @classmethod
    def measured(cls, batching: Batching, prompt_tokens: float, **fields: Any) -> "ServiceTimes":
        """From a measured curve over the requests at once.

        Reading a single token takes what a token of an answer does; reading a prompt, what the first token of one
        request alone did.

        Args:
            batching: with one request at once among its sizes.
            prompt_tokens: mean length of the prompts that were asked.
            fields: others of the times; by default as many rows as the largest size.

        Raises:
            InvalidInput: one request alone was not measured.
        """
        if batching.sizes[0] != 1 or not 1 <= prompt_tokens <= 1 << 30:
            raise InvalidInput(
                "Times come from batching(variant, task, sizes=(1, 2, 4 ...)) and the mean length of its prompts: "
                "measure one request at once, too."
            )
        gaps = np.maximum.accumulate([each.value for each in batching.latency])
        alone = max(batching.ttft[0].value, gaps[0])
        read = {1: float(gaps[0])} | {round(prompt_tokens): float(alone)}
        given: dict[str, Any] = {"rows": batching.sizes[-1], "source": f"measured: '{batching.variant}'"[:300]} | fields
        return cls(read=tuple(read.items()), gap=tuple(zip(batching.sizes, map(float, gaps), strict=True)), **given)

    @classmethod
    def fitted(cls, samples: Sequence[Sequence[float]], **fields: Any) -> "ServiceTimes":
        """From requests that were answered under load.

        Those that came when their replica was idle tell how long a prompt takes. The others tell the time from token to
        token, which is taken to rise by the same with every row: a pass reads the weights once, and works for each row.
        With ``T(r)`` seconds during which `r` rows were decoded, an answer gets the sum of ``T(r) / gap(r)`` tokens; of
        the shares by which a row makes a pass longer, the one that explains the answers best by least squares is
        taken. What prompts took meanwhile is left out.

        Args:
            samples: of each what `Sample` says: arrival, first token, end, tokens of prompt and answer, replica.
            fields: others of the times, such as the rows.

        Raises:
            InvalidInput: there are too few, or none that came to an idle replica.
        """
        found = _checked(samples)
        idle = np.array([_found_idle(found, at) for at in range(len(found))])
        if len(found) < 4 or not idle.any() or found.answer.max() < 2:
            raise InvalidInput(
                "Times are fitted from at least 4 answered requests, some of which came when their replica was idle: "
                "measure at a light load, too."
            )
        read = _read_line(found.prompt[idle], (found.first - found.arrival)[idle])
        reads = _line(read, found.prompt)
        spans = [_stretches(found, at, reads) for at in range(len(found))]
        most = max(int(rows.max(initial=1)) for _, rows, _ in spans)
        first, share = _rising([(rows, seconds) for _, rows, seconds in spans], found.answer - 1)
        gap = {rows: first * (1 + share * (rows - 1)) for rows in (1, most)}
        given: dict[str, Any] = {"rows": most, "source": f"fitted to {len(found)} requests"} | fields
        return cls(read=read, gap=tuple(gap.items()), **given)

    def contended(self, samples: Sequence[Sequence[float]], replicas: int) -> "ServiceTimes":
        """The same with the contention of replicas on one machine, from requests that they answered under load.

        With ``T(k)`` seconds during which `k` of them were busy, an answer gets the sum of ``T(k) / contention(k)`` of
        the tokens that it would get undisturbed.

        Raises:
            InvalidInput: fewer were ever busy at once than there are.
        """
        found = _checked(samples)
        reads = self.reading(found.prompt)
        tokens = np.zeros((len(found), replicas))
        for at in range(len(found)):
            busy, rows, seconds = _stretches(found, at, reads)
            np.add.at(tokens[at], np.minimum(busy, replicas) - 1, seconds / self.token(rows))
        if not (tokens.sum(axis=0) > 0).all():
            raise InvalidInput(f"Not every number of replicas up to {replicas} was busy: measure light and heavy load.")
        speeds = np.linalg.lstsq(tokens, found.answer - 1, rcond=None)[0]
        slower = np.maximum.accumulate(1 / np.clip(speeds, 1e-3, 1.0))
        return self.but(contention=tuple(map(float, slower)))


def _line(points: Points, at: np.ndarray) -> np.ndarray:
    """Lines between points; the first value before them, the last slope behind them."""
    x, y = np.array([each[0] for each in points], float), np.array([each[1] for each in points])
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else 0.0
    return np.asarray(np.interp(at, x, y) + slope * np.maximum(0.0, at - x[-1]))


@dataclass(frozen=True)
class _Samples:
    """All samples, by what they say; each array ``(requests,)``."""

    arrival: np.ndarray
    first: np.ndarray
    end: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    replica: np.ndarray

    def __len__(self) -> int:
        return len(self.arrival)


def _checked(samples: Sequence[Sequence[float]]) -> _Samples:
    try:
        found: np.ndarray = np.array([tuple(each) for each in samples], float).reshape(len(samples), 6)
        arrival, first, end, prompt, answer, _ = found.T
        good = np.isfinite(found).all() and ((arrival <= first) & (first <= end) & (prompt >= 1) & (answer >= 1)).all()
    except (TypeError, ValueError):
        good = False
    if not good:
        raise InvalidInput(
            "A sample is six numbers: arrival, first token and end in seconds, tokens of prompt and answer, replica."
        )
    return _Samples(*found.T)


def _found_idle(found: _Samples, at: int) -> bool:
    """Whether the replica of a request had no other when it came."""
    there = (found.replica == found.replica[at]) & (found.arrival <= found.arrival[at])
    return int((there & (found.end > found.arrival[at])).sum()) == 1


def _rising(spans: Sequence[tuple[np.ndarray, np.ndarray]], tokens: np.ndarray) -> tuple[float, float]:
    """Seconds of a pass with one row, and the share of them that each further row adds.

    Args:
        spans: of every answer, rows and seconds of its stretches, each ``(stretches,)``.
        tokens: of every answer, without the first ``(answers,)``.

    Raises:
        InvalidInput: nothing was decoded.
    """
    passes = np.array([[(seconds / (1 + share * (rows - 1))).sum() for share in SHARES] for rows, seconds in spans])
    speeds = (tokens @ passes) / np.maximum((passes**2).sum(axis=0), 1e-12)
    best = int(((speeds * passes - tokens[:, None]) ** 2).sum(axis=0).argmin())
    if not speeds[best] > 0:
        raise InvalidInput("These samples tell no time from token to token: their answers are too short.")
    return float(1 / speeds[best]), float(SHARES[best])


def _read_line(tokens: np.ndarray, seconds: np.ndarray) -> Points:
    """Seconds over tokens by least squares; two points, or one where all prompts are as long."""
    low, high = int(tokens.min()), int(tokens.max())
    slope = max(0.0, float(np.polyfit(tokens, seconds, 1)[0])) if high > low else 0.0
    start = max(0.0, float(seconds.mean() - slope * tokens.mean()))
    return tuple({each: start + slope * each for each in (low, high)}.items())


def _stretches(found: _Samples, at: int, reads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An answer in the stretches between which nothing changed, each ``(stretches,)``.

    Returns:
        How many replicas were busy, how many rows its own had, and the seconds of decoding.
    """
    begin, end = found.first[at], found.end[at]
    near = (found.arrival < end) & (found.end > begin)
    moments = np.concatenate([found.arrival[near], found.first[near], found.end[near], [begin, end]])
    edges = np.unique(np.clip(moments, begin, end))
    middle = ((edges[:-1] + edges[1:]) / 2)[:, None]
    busy_with = np.where((found.arrival[near] <= middle) & (middle < found.end[near]), found.replica[near], -1)
    busy = np.array([len({*row} - {-1}) for row in busy_with.tolist()], int)
    own = near & (found.replica == found.replica[at])
    rows = ((found.first[own] <= middle) & (middle < found.end[own])).sum(axis=1)
    others = own.copy()
    others[at] = False
    first, took = found.first[others], reads[others]
    read = np.minimum(edges[1:, None], first) - np.maximum(edges[:-1, None], first - took)
    return busy, rows, np.maximum(0.0, np.diff(edges) - np.maximum(0.0, read).sum(axis=1))
