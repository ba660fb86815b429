"""Ranks as Ray actors: started together, asked together, and ended together when one of them fails."""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.core.device import out_of_memory
from workbench.core.errors import Closed, NotAvailable, OutOfMemory, WorkbenchError, first_line
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.serving.ranks import Rank

GLANCE = 0.2  # seconds between looks at whether a rank has failed, or a cancel was asked for
PATIENCE = 120.0  # seconds that ranks wait for each other, while they meet and in every sum
GRACE = 2.0  # seconds in which the reason of a failure is looked for
GOING = 10.0  # seconds in which processes end
ROOT = Path(__file__).parents[2]
_sessions = threading.Lock()
_open = 0  # groups in the session of Ray that was started here


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
        self._ray = library("ray", "Sharding", extra="serve")
        self._ours = _enter(self._ray)
        self._actors: list[Any] = []
        self._pids: list[int] = []
        try:
            kind = self._ray.remote(Rank).options(**self._options(device))
            for number in range(ranks):
                self._actors.append(kind.remote(number, ranks, device, threads, PATIENCE))
        except BaseException:
            self.close()
            raise

    def _options(self, device: str) -> dict[str, Any]:
        """Of every actor: on this machine, with a GPU for itself or none."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self._ray.get_runtime_context().get_node_id()
        path = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))
        hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        return {
            "num_cpus": 0,
            "num_gpus": 1 if device == "cuda" else 0,
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=here, soft=False),
            "runtime_env": {"env_vars": {"PYTHONPATH": path, **hidden}},
        }

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
        self._pids = self.ask("pid", progress=progress)
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
        return self._await([getattr(each, method).remote(*arguments) for each in self._actors], progress)

    def _await(self, asked: Sequence[Any], progress: Progress | None) -> list[Any]:
        waiting, errors = list(asked), self._ray.exceptions.RayError
        try:
            while waiting:
                done, waiting = self._ray.wait(waiting, num_returns=len(waiting), timeout=GLANCE)
                if waiting:
                    self._ray.get(done)  # raises what a rank raised, while others wait for it
                if progress:
                    progress.check()
            return list(self._ray.get(list(asked)))
        except errors:
            if self.closed:
                raise Closed(self._why) from None
            reason = self._reason(asked)
            self.close(str(reason))
            raise reason from None
        except BaseException:  # cancelled or interrupted: the ranks are no longer in step
            self.close()
            raise

    def _reason(self, asked: Sequence[Any]) -> WorkbenchError:
        """What went wrong, from the rank where it did: the others only say that it no longer answers."""
        found: list[tuple[int, Exception]] = []
        until = time.monotonic() + GRACE
        for number, each in enumerate(asked):
            try:
                self._ray.get(each, timeout=max(0.0, until - time.monotonic()))
            except self._ray.exceptions.GetTimeoutError:
                continue
            except Exception as error:
                found.append((number, error))
        ends = f"of '{self._name}' were ended: shard it again"
        dead = [each for each in found if not isinstance(each[1], self._ray.exceptions.RayTaskError)]
        for number, error in dead:
            if isinstance(error, self._ray.exceptions.OutOfMemoryError):
                return OutOfMemory(f"Rank {number} was ended for want of memory, and so all {ends} with more ranks.")
            return NotAvailable(f"The process of rank {number} ended, and so all ranks {ends}.")
        causes = [(number, getattr(error, "cause", error)) for number, error in found]
        for number, error in causes:
            if out_of_memory(error):
                return OutOfMemory(
                    f"Rank {number} ran out of memory ({first_line(error, 120)}), and so all ranks {ends} with more "
                    "of them, or with more memory for each."
                )
        for _, error in causes:
            if isinstance(error, WorkbenchError):
                return type(error)(str(error))
        number, error = causes[0] if causes else (0, TimeoutError("it does not answer"))
        return NotAvailable(f"Rank {number} failed ({first_line(error, 160)}), and so all ranks {ends}.")

    def close(self, why: str = "") -> None:
        """End all processes; returns when they are gone."""
        global _open
        if self.closed:
            return
        self._why = why or f"The ranks of '{self._name}' were ended: shard it again to get them back."
        for each in self._actors:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(each, no_restart=True)
        until = time.monotonic() + GOING
        while any(map(_alive, self._pids)) and time.monotonic() < until:
            time.sleep(0.01)
        if self._ours:
            with _sessions:
                _open -= 1
                if not _open:
                    self._ray.shutdown()


def _enter(ray: Any) -> bool:
    """Start Ray on this machine, reachable from it alone, unless it runs; gives whether it was started here."""
    global _open
    with _sessions:
        if not ray.is_initialized():
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            ray.init(
                address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
                logging_level="ERROR",
            )  # fmt: skip
            _open = 0
        elif not _open:
            return False
        _open += 1
        return True


def _alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
