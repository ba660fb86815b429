"""The fastest way to run a variant on this machine, found by trying."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from workbench.core import files
from workbench.core.device import machine
from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.listed import Listed
from workbench.core.progress import Progress
from workbench.core.remembered import recall, remember
from workbench.measurement.agreement import agreement
from workbench.measurement.latency import time_request
from workbench.models.sharing import fingerprint
from workbench.recipe import REGISTRY, RecipeStep, step_from_json
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

PROMPTS = (
    "What is the tide?",
    "Write a short letter to a friend about a walk by the sea.",
    "A boat has twelve seats and the captain takes one of them. How many are left for guests?",
)
ROUNDS = 3
AS_IT_IS = "as it is"
MINUTE = 60.0  # what is not known beforehand is taken for this long


@dataclass(frozen=True)
class Tried:
    """One way to run a variant.

    Attributes:
        name: of the way.
        rate: tokens a second of one request; None where it was not timed.
        said: whether it says the same, or why it was not timed.
        fits: whether it may be chosen.
        step: what makes it; None for the variant as it is.
    """

    name: str
    rate: float | None
    said: str
    fits: bool
    step: Mapping[str, Any] | None

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.said}" if self.rate is None else f"{self.name}: {self.rate:.3g} tokens/s, {self.said}"
        )


class Auto(Step):
    """Tries the ways to run this variant on this machine, and keeps the fastest that gives the same tokens.

    Each way answers a few short requests, one at a time and in turns, and its greedy tokens are compared with the
    variant's own; a difference is let pass only where the two tokens are nearly as likely. What was found is remembered
    for this variant, this machine and these versions, and the list is shown. Nothing changes where the variant as it is
    is the fastest. A way that takes long to make ready, such as compiling, is tried only where `patience` allows.
    """

    paper: ClassVar[str] = "https://doi.org/10.1109/ICASSP.1998.681704"  # FFTW, which plans by timing
    caveat: ClassVar[str] = "not faster: of the ways to run it that were tried, none is faster here"
    tokens: int = Field(default=32, ge=4, le=512, description="How many tokens each request is timed and compared for.")
    patience: int = Field(
        default=30, ge=0, le=3600, description="Seconds that making a way ready may take; compiling takes a minute."
    )

    def forecast(self, variant: Variant) -> Forecast:
        """The memory depends on what is chosen; the time, on what there is to try."""
        return Forecast(owned_bytes=0, weight_bytes=variant.total_bytes, seconds=None)

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Try what there is, or recall what was found; then take the fastest."""
        asked = [fingerprint(variant.model), repr(variant.engine), self.model_dump()]
        about = [*asked, _ways(), _code(), machine(variant.device)]
        tried = _read(recall("engines", about)) or self._try(variant, progress)
        remember("engines", about, [vars(each) for each in tried])
        best = max((each for each in tried if each.fits), key=lambda each: each.rate or 0.0)
        made = variant if best.step is None else variant.apply(step_from_json(dict(best.step)), None, progress)
        return variant.derive(self, made.model, engine=made.engine, notes=[*made.notes, listed(best, tried)])

    def _try(self, variant: Variant, progress: Progress) -> list[Tried]:
        """All there is, the variant as it is first."""
        ready: dict[str, tuple[RecipeStep | None, Variant]] = {AS_IT_IS: (None, variant)}
        said: dict[str, str] = {AS_IT_IS: "the baseline"}
        left = float(self.patience)
        for kind in _contenders():
            step, started = kind(), time.perf_counter()
            try:
                seconds = step.forecast(variant).seconds
                if (MINUTE if seconds is None else seconds) > left:
                    about = "a minute or more" if seconds is None else f"about {seconds:.0f} s"
                    said[step.label] = f"not tried, making it ready takes {about} (raise patience)"
                    continue
                made = variant.apply(step, None, progress)
                alike = agreement(variant, made, PROMPTS, self.tokens, progress)
                said[step.label] = str(alike)
                if alike.holds:
                    ready[step.label] = step, made
            except Cancelled:
                raise
            except WorkbenchError as refused:
                said[step.label] = f"not possible ({str(refused).rstrip('.')})"
            left -= time.perf_counter() - started
        rates = self._rates({name: each for name, (_, each) in ready.items()}, progress)
        return [
            Tried(name, rates.get(name), reason, name in ready, _json(ready[name][0]) if name in ready else None)
            for name, reason in said.items()
        ]

    def _rates(self, ready: Mapping[str, Variant], progress: Progress) -> dict[str, float]:
        """Tokens a second of one request, the median over all; the ways take turns, and the turns reverse."""
        seconds: dict[str, list[float]] = {name: [] for name in ready}
        progress.start("Timing the ways to run it", (ROUNDS * len(PROMPTS) + 1) * len(ready), undisturbed=True)
        for each in ready.values():
            time_request(each, PROMPTS[0], 4)
            progress.advance()
        for number, prompt in enumerate(PROMPTS * ROUNDS):
            for name in list(ready)[:: 1 if number % 2 else -1]:
                timing = time_request(ready[name], prompt, self.tokens)
                seconds[name].append(timing.ttft + sum(timing.inter_token))
                progress.advance()
        return {name: self.tokens / statistics.median(each) for name, each in seconds.items()}


def listed(best: Tried, tried: Sequence[Tried]) -> Listed:
    """What was kept and what was tried, the fastest first."""
    order, kept = sorted(tried, key=lambda each: -(each.rate or 0.0)), f"Kept {best.name}."
    rows = [(each.name, "–" if each.rate is None else f"{each.rate:.3g}", each.said) for each in order]
    text = f"{kept} Tried {'; '.join(map(str, order))}."
    return Listed(text, kept, ("Way to run it", "Tokens/s", "What was found"), rows)


def _contenders() -> Iterator[type[Step]]:
    """Steps that only change how a single request is computed."""
    for kind in REGISTRY.values():
        if issubclass(kind, Step) and kind.contends:
            yield kind


def _ways() -> list[str]:
    return [kind.full_name() for kind in _contenders()]


def _code() -> list[str]:
    """Hashes of what decodes: another version of it may be faster."""
    package = Path(__file__).parents[2]
    return [
        files.sha256(each) for name in ("runtime", "models/packed") for each in sorted((package / name).glob("*.py"))
    ]


def _json(step: RecipeStep | None) -> dict[str, Any] | None:
    return None if step is None else step.to_json()


def _read(found: Any) -> list[Tried]:
    """What was remembered; nothing where it is not what is written today."""
    try:
        tried = [Tried(**each) for each in found or ()]
        return tried if all(each.step is None or step_from_json(dict(each.step)) for each in tried) else []
    except (TypeError, ValueError):
        return []
