"""One line that says how a job is going, what came of it, or why it was refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from widgets.parts import html, ui
from workbench.core.errors import WorkbenchError
from workbench.core.jobs import Job
from workbench.core.progress import Progress

if TYPE_CHECKING:
    from widgets.session import Session


class Message(ui.HTML):
    """Where a tool says what its buttons did."""

    def __init__(self, bench: "Session") -> None:
        super().__init__()
        self._bench = bench

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Say why something is refused instead of raising it."""
        try:
            yield
        except WorkbenchError as error:
            self.value = html.message(str(error), "error")

    def submit(
        self, label: str, work: Callable[[Progress], Any], done: str = "", key: str = "", cancelled: str = ""
    ) -> None:
        """Queue work and say how it goes; at its end `done` is said, or else what it returned.

        Raises:
            InvalidInput: too many jobs wait, or the same (by `key`, else `label`) is under way.
        """

        def show(job: Job) -> None:
            self.value = html.job_message(job, done or str(job.result or ""), cancelled=cancelled)

        with self._bench.lock:  # so that the worker cannot say "running" before this says "queued"
            self.value = html.message(f"{label}: queued.")
            self._bench.submit(label, work, show, key or label)
