"""What a bench has to do: jobs for people, one after another, and short work that nobody waits for."""

import contextlib
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from workbench.core.errors import InvalidInput
from workbench.core.jobs import Job, Worker
from workbench.core.progress import Progress, Throttle


class Jobs:
    """One worker, and who is told how its jobs go.

    Attributes:
        closed: whether nothing is taken any more.
    """

    def __init__(self, lock: threading.RLock) -> None:
        """`lock` is held while what is on screen changes."""
        self.lock = lock
        self._idle = threading.Condition(lock)
        self._open: dict[Job, str] = {}  # jobs whose end is not on screen yet, and what each would make
        self._wanted: dict[Any, Callable[[], None]] = {}
        self._computing: Job | None = None
        self._worker = Worker()
        self.closed = False

    def submit(
        self, label: str, work: Callable[[Progress], Any], show: Callable[[Job], None] | None = None, key: str = ""
    ) -> Job:
        """Queue work for the worker.

        Args:
            label: what it does, for people.
            work: what to do; it may use models.
            show: called at most five times a second while it is queued or runs, and once when it has ended.
            key: what it would make; a second job for the same is refused while the first is open.

        Raises:
            InvalidInput: too many jobs wait, the same is under way already, or the bench was closed.
        """
        shown = ["queued"]
        todo = [work]  # emptied at the end: an ended job must not keep a variant's memory
        told: list[Job] = []

        def tell() -> None:
            with self.lock:
                job = told[-1]
                if job not in self._open:  # its end was told while this waited
                    return
                shown[0] = job.status
                if job.ended:
                    self._open.pop(job, None)
                    todo.clear()
                try:
                    if not self.closed:
                        if show:
                            show(job)
                        self._show_status()
                except Exception:  # it may be said late, where nobody would hear of it
                    job.details = job.details or traceback.format_exc()
                finally:
                    self._idle.notify_all()

        throttle = Throttle(tell)

        def listen(job: Job) -> None:
            told[:] = [job]
            throttle(force=job.ended or job.status != shown[0], late=not job.progress.undisturbed)

        with self.lock:
            self._check_open()
            if key and key in self._open.values():
                raise InvalidInput(f"{label} is under way already: wait for it or cancel it.")
            job = self._worker.submit(label, lambda progress: todo.pop()(progress), listen)
            self._open[job] = key
            self._show_status()
        return job

    def compute(self, key: Any, work: Callable[[], None]) -> None:
        """Run something short on the worker when it is free; only the newest for a key is run, and nobody sees it."""
        with self.lock:
            if self.closed:
                return
            self._wanted[key] = work
            if self._computing is None:
                try:
                    self._computing = self._worker.submit("", self._compute_wanted)
                except InvalidInput:  # the queue is full: the next change asks again
                    self._wanted.clear()

    def _compute_wanted(self, progress: Progress) -> None:
        while True:
            with self.lock:
                if not self._wanted or self.closed:
                    self._computing = None
                    self._idle.notify_all()
                    return
                work = self._wanted.pop(next(iter(self._wanted)))
            with contextlib.suppress(Exception):  # a forecast that fails must not stop the next one
                work()

    @property
    def jobs(self) -> Sequence[Job]:
        """Jobs that people wait for, the running one first."""
        return tuple(job for job in self._worker.jobs if job.label)

    def cancel(self) -> None:
        """Cancel the running job; it stops at its next report and changes nothing."""
        if jobs := self.jobs:
            jobs[0].cancel()
            with self.lock:
                self._show_status()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every job has ended and is on screen; False when the timeout (seconds) passed first."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._open and self._computing is None, timeout)

    def end(self) -> None:
        """Stop the worker; what waits is dropped."""
        self.closed = True
        self._worker.close()
        self._wanted.clear()
        self._open.clear()
        self._computing = None
        self._idle.notify_all()

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidInput("This bench was closed: run its cell again.")

    def _show_status(self) -> None:
        """Say what is running; the bench overrides it."""
