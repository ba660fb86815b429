"""How a service holds under load: requests that come at random, or so many at once, and what each of them waited."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, cycle
from time import perf_counter
from typing import TYPE_CHECKING, Any

from workbench.answering.request import Request
from workbench.answering.speaker import Respondent
from workbench.core.device import environment
from workbench.core.drawn import HTML, Drawn, drawn
from workbench.core.errors import Busy, InvalidInput, WorkbenchError
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.measurement.latency import requests
from workbench.serving.endpoint import Endpoint
from workbench.serving.queueing import Load
from workbench.serving.sent import Kind, Sent, Stage
from workbench.serving.service import Service
from workbench.serving.times import Sample
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

PATIENCE = 0.2  # seconds between two looks at the progress
LIVE = 1.0  # seconds between two accounts of what is known so far, at least
TELLING = 0.05  # of the time may be spent on them
TIMELINE = "timeline"


@dataclass(frozen=True)
class LoadTest(Drawn):
    """Services under load.

    Attributes:
        stages: one a service and level, in the order in which they were measured.
        notes: what a reader should know.
        environment: of whoever asked.
    """

    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The services, in their order."""
        return list(dict.fromkeys(each.name for each in self.stages))

    @property
    def samples(self) -> list[Sample]:
        """Every request that was answered, as `ServiceTimes.fitted` takes them; stages follow each other on a clock.

        Of a test in which a replica died or was replaced, they tell nothing: what it had begun was done twice.
        """
        start, found, numbers = 0.0, [], dict[tuple[str, str], int]()
        for stage in self.stages:
            for each in stage.answered:
                first, replica = each.due + each.ttft, numbers.setdefault((stage.name, each.replica), len(numbers))
                tokens = max(1, each.prompt_tokens), max(1, each.answer_tokens)
                found.append(Sample(start + each.due, start + first, start + each.end, *tokens, replica))
            start += stage.spent + 1.0
        return found

    @property
    def seen(self) -> Load:
        """What came, as `forecast` takes it: lengths of the requests that were answered, at the rate of them all.

        Raises:
            InvalidInput: nothing was answered.
        """
        samples, spent = self.samples, sum(each.seconds if each.kind == "rate" else each.spent for each in self.stages)
        return Load(
            rate=sum(len(each.sent) for each in self.stages) / spent,
            prompts=tuple(int(each.prompt) for each in samples),
            answers=tuple(int(each.answer) for each in samples),
        )

    def __str__(self) -> str:
        return " ".join(map(_sentence, self.stages))

    def table(self) -> "pandas.DataFrame":
        """One row a service and level; times in seconds."""
        import pandas

        return pandas.DataFrame([each.row() for each in self.stages])

    def figure(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """Time to the first token, latency and throughput over the load."""
        return drawn(self, transparent=transparent)

    def timeline(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """Every request: what it waited over when it came, by the replica that answered, errors marked."""
        return drawn(self, TIMELINE, transparent=transparent)

    def html(self) -> str:
        """A table that needs no kernel."""
        return str(drawn(self, HTML))


def _sentence(stage: Stage) -> str:
    load = f"{stage.level:g} requests/s" if stage.kind == "rate" else f"{stage.level:g} at once"
    first, whole = stage.percentile("ttft", 95), stage.percentile("latency", 95)
    errors = ", ".join(f"{number} {kind}" for kind, number in stage.errors.items()) or "no errors"
    if first is None or whole is None:
        return f"'{stage.name}' at {load}: nothing was answered; {errors}."
    return (
        f"'{stage.name}' at {load}: {stage.throughput:.4g} tokens/s; first token p95 {first.value:.3g} s, whole answer "
        f"p95 {whole.value:.3g} s; {errors}."
    )


@watched
def load_test(
    services: Respondent | Service | Sequence[Respondent | Service],
    task: Task | Text,
    *,
    rate: float | Sequence[float] = (),
    concurrency: int | Sequence[int] = (),
    seconds: float = 20.0,
    new_tokens: int = 32,
    target_ttft: float = 1.0,
    target_gap: float = 0.2,
    at: Mapping[float, Callable[[], object]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    on_update: Callable[[LoadTest], None] | None = None,
) -> LoadTest:
    """Put services under load, one after another at each level: requests that come at a rate, or so many at once.

    At a rate, they come as independent users' do (a Poisson process), whether or not earlier ones were answered; what
    each waits counts from when it came, so that a service that stalls is seen to stall. All services get the same
    requests at the same times. Nothing that failed is asked again. Answers have exactly `new_tokens` tokens where the
    service can.

    Args:
        services: services, endpoints or variants; several are tried in turn, in an order that reverses at each level.
        task: its test examples are asked, again and again.
        rate: requests per second, one or several levels.
        concurrency: requests at once, one or several levels; a new one is sent when one ends.
        seconds: that requests are sent for at each level; those that were sent are waited for.
        new_tokens: of every answer.
        target_ttft: seconds within which the first token of a good answer comes.
        target_gap: seconds from token to token of a good answer, on average.
        at: what is done so many seconds after a level began, such as killing a replica.
        seed: of the times at which requests come.
        progress: cancel and progress.
        on_update: called with what is known so far, every second and after every level, from other threads. What it
            computes is taken from whoever answers on this machine; where it takes long, it is called less often.

    Raises:
        InvalidInput: there is no level, or a setting is out of range.
    """
    asked = [each.endpoint(retries=0) if isinstance(each, Service) else each for each in _listed(services)]
    targets = [each.impatient() if isinstance(each, Endpoint) else each for each in asked]
    levels: list[tuple[Kind, float]] = [("rate", float(each)) for each in _listed(rate)]
    levels += [("concurrency", int(each)) for each in _listed(concurrency)]
    if not targets or not levels or min(level for _, level in levels) <= 0:
        raise InvalidInput("load_test() needs a service, and a rate or a concurrency above 0.")
    if any(not 0 <= each < seconds for each in at or ()):
        raise InvalidInput(f"What is done `at` a time is done from 0 to {seconds:g} seconds after a level began.")
    if not seconds > 0 or new_tokens < 1 or not (target_ttft > 0 and target_gap > 0):
        raise InvalidInput("load_test() needs seconds, new_tokens and targets above 0.")
    progress = progress or Progress()
    variant = next((each for each in targets if isinstance(each, Variant)), None)
    prompts = requests(variant, task, len(task.test) if isinstance(task, Task) else task.test)
    settings = {"max_new_tokens": new_tokens, "temperature": 0.0, "endless": True}
    stages: list[Stage] = []
    progress.start("Under load", len(levels) * len(targets), undisturbed=True)
    for number, (kind, level) in enumerate(levels):
        for each in targets[:: -1 if number % 2 else 1]:
            due = _arrivals(level, seconds, seed) if kind == "rate" else None

            def stage(sent: Sequence[Sent], name: str = each.name, kind: Kind = kind, level: float = level) -> Stage:
                return Stage(name, kind, level, seconds, tuple(sent), (target_ttft, target_gap))

            def tell(sent: Sequence[Sent], stage: Callable[..., Stage] = stage) -> None:
                if on_update and sent:
                    on_update(_result([*stages, stage(sent)], targets))

            load = _Load(each, prompts, settings, seconds, dict(at or {}), progress, tell)
            sent = _in_thread(load.paced(due) if due is not None else load.kept(int(level)))
            tell(sent)
            stages.append(stage(sent))
            progress.advance()
    return _result(stages, targets)


def _result(stages: Sequence[Stage], targets: Sequence[Respondent]) -> LoadTest:
    notes = tuple(dict.fromkeys(note for each in targets for note in each.notes))
    import torch

    return LoadTest(tuple(stages), notes, environment(torch.device("cpu")))


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests come, in seconds: a Poisson process."""
    draw, found, now = random.Random(seed), [], 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        found.append(now)
    return found or [0.0]


def _in_thread(work: Any) -> list[Sent]:
    """What a coroutine gives, in an event loop of its own: a notebook's is running already."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            found.append(error)

    thread = threading.Thread(target=run, name="workbench-load")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return list(found[0])


class _Load:
    """One level of load on one service."""

    def __init__(
        self,
        who: Respondent,
        prompts: Sequence[Request],
        settings: Mapping[str, Any],
        seconds: float,
        at: Mapping[float, Callable[[], object]],
        progress: Progress,
        tell: Callable[[Sequence[Sent]], object],
    ) -> None:
        self._who, self._settings, self._seconds = who, settings, seconds
        self._prompts: Iterator[Request] = cycle(prompts)
        self._at, self._progress, self._tell = at.items(), progress, tell
        self._started = 0.0
        self._sent: dict[int, Sent] = {}
        self._numbers = count()

    @property
    def _now(self) -> float:
        return perf_counter() - self._started

    async def paced(self, due: Sequence[float]) -> list[Sent]:
        """Requests at given times."""
        self._started = perf_counter()
        async with self._watched(), asyncio.TaskGroup() as group:
            for time in due:
                await asyncio.sleep(max(0.0, time - self._now))
                group.create_task(self._ask(time))
        return self._found

    async def kept(self, many: int) -> list[Sent]:
        """So many at once, again and again."""
        self._started = perf_counter()
        async with self._watched(), asyncio.TaskGroup() as group:
            for _ in range(many):
                group.create_task(self._repeat())
        return self._found

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Until all is answered, do what is to be done at its time, and end all when the test is cancelled."""
        async with asyncio.TaskGroup() as group:
            for time, action in self._at:
                group.create_task(self._do(time, action))
            watching = [group.create_task(each) for each in (self._watch(), self._account())]
            yield
            for each in watching:
                each.cancel()

    @property
    def _found(self) -> list[Sent]:
        return [self._sent[number] for number in sorted(self._sent)]

    async def _watch(self) -> None:
        while True:
            self._progress.check()
            await asyncio.sleep(PATIENCE)

    async def _account(self) -> None:
        wait = LIVE
        while True:
            await asyncio.sleep(wait)
            began = self._now
            await asyncio.to_thread(self._tell, self._found)
            wait = max(LIVE, (self._now - began) / TELLING)

    async def _do(self, time: float, action: Callable[[], object]) -> None:
        await asyncio.sleep(time)
        await asyncio.to_thread(action)

    async def _repeat(self) -> None:
        while self._now < self._seconds:
            await self._ask(self._now)

    async def _ask(self, due: float) -> None:
        number, first, answer, error = next(self._numbers), None, None, ""
        try:
            async for piece in self._who.astream(next(self._prompts), **self._settings):
                first = self._now if first is None else first
                answer = piece.answer
        except Busy:
            error = "refused"
        except WorkbenchError as failed:
            error = type(failed).__name__
        spent = (answer.prompt_tokens, answer.spent, answer.replica) if answer else (0, 0, "")
        self._sent[number] = Sent(due, first, self._now, *spent, error=error)
        if error == "refused":
            await asyncio.sleep(0.05)  # whoever is refused at once and asks at once again measures nothing else
