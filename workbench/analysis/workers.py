"""Trials beside each other, each in a process of its own, on Ray; what is timed is timed alone, afterwards."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from workbench.analysis.trials import SPEEDS, Draw, Judge, Trial
from workbench.core import cluster
from workbench.core.errors import InvalidInput, first_line
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.variant import load

PURPOSE = "Searching with several workers"
GLANCE = 0.2  # seconds between looks at whether a cancel was asked for


class Worker:
    """A process that tries recipes on its own copy of the base."""

    def __init__(self, path: str, settings: dict[str, Any], threads: int, told: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        self._judge = Judge(base=load(path, **settings), **told)

    def judged(self, draw: Draw) -> Trial:
        """One of them; an error is noted in the trial."""
        return self._judge.judged([draw], Progress())[0]


class Workers:
    """As many processes as were asked for, that do what a judge does.

    Args:
        judge: whose base they load, from a folder.
        count: how many.
        folder: where it is saved.

    Raises:
        InvalidInput: there are fewer GPUs.
        NotAvailable: Ray is not installed or cannot start.
        WorkbenchError: the base cannot be saved.
    """

    def __init__(self, judge: Judge, count: int, folder: Path) -> None:
        base, device = judge.base, judge.base.device.type
        if device == "cuda" and count > torch.cuda.device_count():
            raise InvalidInput(f"There are {torch.cuda.device_count()} GPUs for {count} workers: give each its own.")
        self._judge = judge
        base.save(folder / "base")
        cluster.start(PURPOSE)
        self._ray = library("ray", PURPOSE, extra="serve")
        told = {each.name: getattr(judge, each.name) for each in fields(judge)}
        del told["base"], told["remembered"]  # each has its own
        told["metrics"] = judge.metrics.difference(SPEEDS)
        settings = {"device": device, "dtype": str(base.dtype).removeprefix("torch."), "name": base.name}
        self._arguments = (
            str(folder / "base"),
            settings,
            max(1, torch.get_num_threads() // count),
            self._ray.put(told),
        )
        self._kind = self._ray.remote(Worker).options(**cluster.actor(device))
        self._actors: list[Any] = [self._kind.remote(*self._arguments) for _ in range(count)]

    def judged(self, draws: Sequence[Draw], progress: Progress) -> list[Trial]:
        """Try recipes, at most one a worker; one whose process ends is noted, and replaced."""
        begun = time.monotonic()
        asked = [each.judged.remote(draw) for each, draw in zip(self._actors, draws, strict=False)]
        progress.start(f"Trying {len(asked)} recipes", len(asked))
        waiting = asked
        while waiting:
            _, waiting = self._ray.wait(waiting, num_returns=len(waiting), timeout=GLANCE)
            progress.advance(len(asked) - len(waiting) - progress.done)
        tried = [self._trial(at, draw, each) for at, (draw, each) in enumerate(zip(draws, asked, strict=True))]
        share = (time.monotonic() - begun) / max(1, len(tried))  # of a budget, what each took
        tried = [each.model_copy(update={"seconds": share}) for each in tried]
        if not self._judge.metrics.intersection(SPEEDS):
            return tried
        return [self._judge.timed(each, progress) if each.ended == "whole" else each for each in tried]

    def _trial(self, at: int, draw: Draw, asked: Any) -> Trial:
        try:
            tried: Trial = self._ray.get(asked)
            return tried
        except self._ray.exceptions.RayActorError:
            why = "The process that tried it ended (killed, or short of memory)."
        except self._ray.exceptions.RayError as error:  # such as a device that is lost to this process
            why = f"The process that tried it failed: {first_line(error, 160)}."
        self._ray.kill(self._actors[at], no_restart=True)
        self._actors[at] = self._kind.remote(*self._arguments)
        return draw.trial.model_copy(update={"ended": "refused", "why": why})

    def close(self) -> None:
        """End the processes; Ray itself stays for whoever comes next."""
        for each in self._actors:
            self._ray.kill(each, no_restart=True)


@contextmanager
def opened(judge: Judge, count: int) -> Iterator[Judge | Workers]:
    """Who tries recipes: the judge itself, or several processes, which are ended afterwards."""
    if count == 1:
        yield judge
        return
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(judge, count, Path(folder))
        try:
            yield workers
        finally:
            workers.close()
