"""What requests under load waited, one by one and all of a level."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from workbench.core import estimate
from workbench.core.estimate import Estimate

PERCENTILES = (50, 95, 99)
Kind = Literal["rate", "concurrency"]


@dataclass(frozen=True)
class Sent:
    """One request; times are seconds since its stage began.

    Attributes:
        due: when it came. What it waited counts from then, whether or not it could be sent at once.
        first: its first token; None where none came.
        end: its last token, or its error.
        prompt_tokens: of the request.
        answer_tokens: of the answer.
        replica: which process answered, where the service says so.
        error: the kind of error; "refused" where the queue was full, empty where it was answered.
    """

    due: float
    first: float | None
    end: float
    prompt_tokens: int = 0
    answer_tokens: int = 0
    replica: str = ""
    error: str = ""

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return (self.end if self.first is None else self.first) - self.due

    @property
    def latency(self) -> float:
        """Seconds to the last one."""
        return self.end - self.due

    @property
    def gap(self) -> float:
        """Seconds from token to token."""
        return (self.latency - self.ttft) / max(1, self.answer_tokens - 1)


@dataclass(frozen=True)
class Stage:
    """One service under one load.

    Attributes:
        name: of the service.
        kind: whether requests come at a rate or a number is kept going.
        level: requests per second, or how many at once.
        seconds: that requests were sent for.
        sent: all of them, in the order in which they came.
        targets: seconds to the first token and from token to token, within which an answer is good.
    """

    name: str
    kind: Kind
    level: float
    seconds: float
    sent: tuple[Sent, ...]
    targets: tuple[float, float]

    @property
    def answered(self) -> list[Sent]:
        """Those that were."""
        return [each for each in self.sent if not each.error]

    @property
    def errors(self) -> dict[str, int]:
        """How many were not, by the kind of error."""
        return dict(Counter(each.error for each in self.sent if each.error))

    @property
    def spent(self) -> float:
        """Seconds from the first request to the last answer."""
        return max((each.end for each in self.sent), default=0.0)

    @property
    def throughput(self) -> float:
        """Tokens of answers a second."""
        return sum(each.answer_tokens for each in self.answered) / self.spent if self.spent else 0.0

    @property
    def goodput(self) -> Estimate:
        """Requests a second that were answered within the targets."""
        first, gap = self.targets
        good = [float(not each.error and each.ttft <= first and each.gap <= gap) for each in self.sent]
        rate = len(good) / self.spent
        found = estimate.mean(good, "requests/s")
        return found.model_copy(update={end: getattr(found, end) * rate for end in ("value", "low", "high")})

    def percentile(self, measure: str, percent: int) -> Estimate | None:
        """Of "ttft", "latency" or "gap" of the requests that were answered; None where none was."""
        values = [getattr(each, measure) for each in self.answered]
        return estimate.quantile(values, percent / 100, "s") if values else None

    def row(self) -> dict[str, Any]:
        """All of it in one row; times in seconds."""
        found: dict[str, Any] = {
            "service": self.name,
            self.kind: self.level,
            "requests": len(self.sent),
            "errors": sum(self.errors.values()),
            "tokens/s": self.throughput,
            "goodput": self.goodput.value if self.sent else 0.0,
        }
        for measure in ("ttft", "latency"):
            for percent in PERCENTILES:
                value = self.percentile(measure, percent)
                found[f"{measure}_p{percent}"] = value.value if value else None
        return found
