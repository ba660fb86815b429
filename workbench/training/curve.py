"""How a training went: what is drawn while it runs and kept when it has ended."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.core.drawn import drawn

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Point:
    """One optimizer step.

    Attributes:
        step: counted from 1.
        loss: mean over its learned tokens, before it, in nats.
        rate: its learning rate.
        tokens: read, padding left out.
        seconds: that it took.
        memory: bytes, on a GPU the most allocated during it, on a CPU what the process held behind it.
    """

    step: int
    loss: float
    rate: float
    tokens: int
    seconds: float
    memory: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What the calibration split says after a step; step 0 is before the first.

    Attributes:
        step: counted from 1.
        loss: mean negative log-likelihood of its learned tokens, in nats.
        answers: prompt and answer of some of its examples.
    """

    step: int
    loss: float
    answers: tuple[tuple[str, str], ...] = ()


@dataclass
class Curve:
    """Grows while a step trains.

    Attributes:
        total: optimizer steps planned.
        points: one for each step done.
        evaluations: the first before any step.
        notes: what a reader of the result should know.
    """

    total: int = 0
    points: list[Point] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def read_json(self, record: dict[str, Any]) -> None:
        """Become what `to_json` gave; what is noted already stays."""
        self.total = record["total"]
        self.points = [Point(**each) for each in record["points"]]
        self.evaluations = [
            Evaluation(each["step"], each["loss"], tuple((said[0], said[1]) for said in each["answers"]))
            for each in record["evaluations"]
        ]
        self.notes += [each for each in record["notes"] if each not in self.notes]

    def table(self) -> "pd.DataFrame":
        """One row for every step, the validation loss where it was measured."""
        import pandas as pd

        watched = {each.step: each.loss for each in self.evaluations}
        rows = [asdict(each) | {"validation_loss": watched.get(each.step)} for each in self.points]
        return pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame()

    def figure(self, transparent: bool = False) -> "go.Figure":
        """Losses, learning rate and pace."""
        return drawn(self, transparent=transparent)

    def __repr__(self) -> str:
        if not self.evaluations:
            return "<Curve: not begun>"
        first, best = self.evaluations[0], self.best
        assert best
        return (
            f"<Curve: {len(self.points)} of {self.total} steps, validation loss {first.loss:.3f} -> {best.loss:.3f} "
            f"(best, after step {best.step}), {self.tokens_per_second:.0f} tokens/s>"
        )

    @property
    def best(self) -> Evaluation | None:
        """The lowest validation loss, the first of equals."""
        return min(self.evaluations, key=lambda each: each.loss, default=None)

    @property
    def waited(self) -> int:
        """Evaluations since the best."""
        best = self.best
        return len(self.evaluations) - 1 - self.evaluations.index(best) if best else 0

    @property
    def tokens_per_second(self) -> float:
        """Of the last steps, evaluations left out."""
        last = self.points[-10:]
        return sum(each.tokens for each in last) / max(1e-9, sum(each.seconds for each in last))
