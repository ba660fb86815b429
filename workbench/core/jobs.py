"""The one worker thread: panels enqueue jobs, it runs them one after another, and says how each is going."""

import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any, Literal

from workbench.core.errors import Cancelled, InvalidInput, WorkbenchError
from workbench.core.progress import Progress

Status = Literal["queued", "running", "done", "failed", "cancelled"]
QUEUE_LIMIT = 20


class Job:
    """One piece of work and how it is going.

    Attributes:
        label: what it does, for people.
        status: queued, running, done, failed or cancelled.
        progress: how far it is; `cancel` goes through it.
        result: what the work returned, once done.
        error: one plain sentence, once failed.
        details: the traceback, once failed with an error that is not ours.
    """

    def __init__(
        self, label: str, work: Callable[[Progress], Any], listener: Callable[["Job"], None] | None = None
    ) -> None:
        self.label = label
        self.status: Status = "queued"
        self.result: Any = None
        self.error = ""
        self.details = ""
        self.progress = Progress(lambda _: self._tell())
        self._work = work
        self._listener = listener
        self._ended = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ask the work to stop; a queued job ends without starting."""
        self.progress.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the job has ended; False when the timeout (seconds) passed first."""
        return self._ended.wait(timeout)

    def run(self) -> None:
        """Do the work, in the thread that calls this; never raises."""
        try:
            self.progress.check()
            self.status = "running"
            self._tell()
            self.result = self._work(self.progress)
            self.status = "done"
        except Cancelled:
            self.status = "cancelled"
        except WorkbenchError as error:
            self.status, self.error = "failed", str(error)
        except BaseException as error:  # a panel must show it; letting it kill the worker would freeze the bench
            self.status, self.details = "failed", traceback.format_exc()
            self.error = (
                f"Something unexpected went wrong ({type(error).__name__}): nothing was changed; see the details."
            )
        del self._work  # it may hold a variant, whose memory must not wait for the next job
        self._ended.set()
        self._tell()

    def _tell(self) -> None:
        if self._listener:
            try:
                self._listener(self)
            except Exception:  # a screen that cannot be drawn must not stop the work
                self.details = self.details or traceback.format_exc()


class Worker:
    """A single daemon thread that runs jobs in the order they came."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._jobs: list[Job] = []
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="workbench-worker", daemon=True)
        self._thread.start()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Jobs that have not ended, the running one first."""
        with self._lock:
            return tuple(job for job in self._jobs if not job.ended)

    def submit(self, label: str, work: Callable[[Progress], Any], listener: Callable[[Job], None] | None = None) -> Job:
        """Queue work; `listener` is called from the worker's thread, at most five times a second and at the end.

        Raises:
            InvalidInput: too many jobs are waiting, or the worker was closed.
        """
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.ended]
            if len(self._jobs) >= QUEUE_LIMIT:
                raise InvalidInput(f"{QUEUE_LIMIT} jobs are waiting already: let some finish or cancel them.")
            if self._closed:
                raise InvalidInput("This bench was closed: run its cell again.")
            job = Job(label, work, listener)
            self._jobs.append(job)
        self._queue.put(job)
        return job

    def close(self) -> None:
        """Cancel everything and end the thread after the running job's next report."""
        with self._lock:
            self._closed = True
            for job in self._jobs:
                job.cancel()
        self._queue.put(None)

    def _loop(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run()
