"""Ranks as Ray actors: started together, asked together, and ended together when one of them fails."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.core import cluster
from workbench.core.device import out_of_memory
from workbench.core.errors import Closed, NotAvailable, OutOfMemory, WorkbenchError, first_line
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.serving.ranks import Rank

GLANCE = 0.2  # seconds between looks at whether a rank has failed, or a cancel was asked for
PATIENCE = 120.0  # seconds that ranks wait for each other, while they meet and in every sum
STARTING = 300.0  # seconds in which their processes are there
GRACE = 2.0  # seconds in which the reason of a failure is looked for
GOING = 10.0  # seconds in which processes end


class Group:
    """Ranks of one model; a failure of one is the end of all.

    Args:
        name: of the model, for sentences.
        ranks: how many.
        device: "cpu" or "cuda", then with a GPU each.
        threads: that a rank computes with on a CPU.

    Raises:
        NotAvailable: Ray is not installed or cannot start.
    """

    def __init__(self, name: str, ranks: int, device: str, threads: int) -> None:
        self._name, self._why = name, ""
        cluster.start("Sharding")
        self._ray = library("ray", "Sharding", extra="serve")
        self._actors: list[Any] = []
        self._pids: list[int] = []
        try:
            kind = self._ray.remote(Rank).options(**cluster.actor(device))
            for number in range(ranks):
                self._actors.append(kind.remote(number, ranks, device, threads, PATIENCE))
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether its processes were ended."""
        return bool(self._why)

    def check(self) -> None:
        """Raise `Closed` if its processes were ended."""
        if self.closed:
            raise Closed(self._why)

    def start(self, progress: Progress) -> None:
        """Wait until all ranks run and have met.

        Raises:
            Cancelled: the progress was cancelled.
            NotAvailable: a process ended, or they could not meet.
        """
        self._pids = self._await([each.pid.remote() for each in self._actors], progress, STARTING)
        port = self._await([self._actors[0].listen.remote()], progress)[0]
        self.ask("join", port, progress=progress)

    def ask(self, method: str, *arguments: Any, progress: Progress | None = None) -> list[Any]:
        """Have all ranks do something; gives what each answers, or ends them all.

        Raises:
            Closed: the ranks were ended before.
            NotAvailable: one of them ended or failed.
            OutOfMemory: one had too little memory.
            Cancelled: the progress was cancelled.
        """
        self.check()
        asked: list[Any] = []
        try:
            for each in self._actors:
                asked.append(getattr(each, method).remote(*arguments))
        except BaseException:  # some were asked and others not: they are no longer in step
            self.close()
            raise
        return self._await(asked, progress)

    def _await(self, asked: Sequence[Any], progress: Progress | None, within: float = math.inf) -> list[Any]:
        waiting, errors, until = list(asked), self._ray.exceptions.RayError, time.monotonic() + within
        try:
            while waiting:
                done, waiting = self._ray.wait(waiting, num_returns=len(waiting), timeout=GLANCE)
                if waiting:
                    self._ray.get(done)  # raises what a rank raised, while others wait for it
                    if time.monotonic() > until:
                        raise NotAvailable(
                            f"The ranks of '{self._name}' did not start within {within:.0f} s: Ray has "
                            "no room for them on this machine."
                        )
                if progress:
                    progress.check()
            return list(self._ray.get(list(asked)))
        except errors:
            if self.closed:
                raise Closed(self._why) from None
            reason = self._reason(asked)
            self.close(str(reason))
            raise reason from None

    def _reason(self, asked: Sequence[Any]) -> WorkbenchError:
        """What went wrong, from the rank where it did: the others only say that it no longer answers."""
        known, until, found, silent = self._ray.exceptions, time.monotonic() + GRACE, [], []
        for number, each in enumerate(asked):
            try:
                self._ray.get(each, timeout=max(0.0, until - time.monotonic()))
            except known.GetTimeoutError:
                silent.append(number)
            except Exception as error:
                lost = isinstance(error, known.RayError) and not isinstance(error, known.RayTaskError)
                found.append((number, lost, getattr(error, "cause", error)))
        ends = f"and so all ranks of '{self._name}' were ended"
        for number, lost, cause in sorted(found, key=lambda each: not each[1]):  # those that are gone come first
            if isinstance(cause, known.OutOfMemoryError) or out_of_memory(cause):
                return OutOfMemory(
                    f"Rank {number} ran out of memory ({first_line(cause, 120)}), {ends}: shard it among more of them, "
                    "or let each take more."
                )
            if lost:
                return NotAvailable(
                    f"The process of rank {number} ended (killed, or short of memory), {ends}: shard it again."
                )
        for _, _, cause in found:
            if isinstance(cause, WorkbenchError):
                return type(cause)(str(cause))
        if silent and any("timed out" in str(cause).lower() for *_, cause in found):
            return NotAvailable(
                f"Rank {silent[0]} did not answer the others for {PATIENCE:.0f} s, {ends}: shard it again."
            )
        number, _, cause = found[0]
        return NotAvailable(f"Rank {number} failed ({first_line(cause, 160)}), {ends}: shard it again.")

    def close(self, why: str = "") -> None:
        """End all processes of the ranks; returns when they are gone. Ray itself stays for whoever comes next."""
        if self.closed:
            return
        self._why = why or f"The ranks of '{self._name}' were ended: shard it again to get them back."
        for each in self._actors:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(each, no_restart=True)
        until = time.monotonic() + GOING
        while any(map(_alive, self._pids)) and time.monotonic() < until:
            time.sleep(0.01)


def _alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
