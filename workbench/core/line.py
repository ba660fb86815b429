"""A line under a long call in a plain cell or script that says how far it is, and goes when the call ends."""

import contextvars
import inspect
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate
from typing import Any, ParamSpec, TypeVar
from unicodedata import east_asian_width

from workbench.core import units
from workbench.core.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")
VARIABLE = "WORKBENCH_PROGRESS"  # "off" in the environment: no lines
PATIENCE = 1.0  # seconds before a line appears: what is quick says nothing
BAR = 20  # characters
_under: list[str] = []  # the outermost long call of the main thread, while it runs


def watched(function: Callable[P, R]) -> Callable[P, R]:
    """A long call that shows a line by itself, in a terminal or a notebook, where it is given no ``progress``.

    Silent when piped, in other threads than the main one, inside another long call, in the first second, and where the
    environment has ``WORKBENCH_PROGRESS=off``.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _under or threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        _under.append(function.__name__)
        try:
            given = signature.bind(*args, **kwargs)
            show = None if given.arguments.get("progress") is not None else _place()
            if show is None:
                return function(*args, **kwargs)
            with _line(show) as progress:
                given.arguments["progress"] = progress
                return function(*given.args, **given.kwargs)
        finally:
            _under.clear()

    return call


def text(progress: Progress) -> str:
    """What the line says: stage, bar, units, seconds left; plain text without anything that moves a cursor."""
    full = round(BAR * progress.fraction)
    said = [f"{progress.label} [{'#' * full}{'.' * (BAR - full)}] {progress.done} of {progress.total}"]
    if progress.eta is not None and progress.eta >= 1:
        said.append(f"about {units.duration(progress.eta)} left")
    return "".join(each if each.isprintable() else "?" for each in ", ".join(said))


@contextmanager
def _line(show: Callable[[str], None]) -> Iterator[Progress]:
    """A progress whose reports are shown after a while, until the end."""
    lock, patient, ended, shown = threading.Lock(), True, False, False

    def draw(progress: Progress) -> None:
        nonlocal shown
        with lock:  # a last report may come late, from another thread
            if not (patient or ended or not progress.total):
                show(text(progress))
                shown = True

    def begin() -> None:
        nonlocal patient
        patient = False
        if not progress.undisturbed:
            draw(progress)

    progress = Progress(draw)
    # In this context, by which a kernel knows the cell that the line belongs to.
    timer = threading.Timer(PATIENCE, contextvars.copy_context().run, [begin])
    timer.daemon = True
    timer.start()
    try:
        yield progress
    finally:
        timer.cancel()
        with lock:
            ended = True
            if shown:
                show("")


def _place() -> Callable[[str], None] | None:
    """Shows a line, or with an empty text removes it; None where nobody would see it."""
    if os.environ.get(VARIABLE, "").lower() in ("off", "0", "no", "false"):
        return None
    shell = sys.modules["IPython"].get_ipython() if sys.modules.get("IPython") else None
    if getattr(shell, "kernel", None) is not None:
        return _Cell(shell)
    try:
        return _terminal if sys.stdout.isatty() else None
    except (AttributeError, ValueError):  # closed, or replaced by something simpler
        return None


def _terminal(line: str) -> None:
    room = shutil.get_terminal_size().columns - 1
    widths = accumulate(2 if east_asian_width(each) in "WF" else 1 for each in line)
    kept = "".join(each for each, end in zip(line, widths, strict=True) if end <= room)
    sys.stdout.write(f"\r\x1b[K{kept}")
    sys.stdout.flush()


class _Cell:
    """A display of a notebook's cell that is drawn over, and left without data at the end."""

    def __init__(self, shell: Any) -> None:
        self._publish = shell.display_pub.publish
        self._transient = {"display_id": secrets.token_hex(8)}
        self._drawn = False

    def __call__(self, line: str) -> None:
        self._publish({"text/plain": line} if line else {}, transient=self._transient, update=self._drawn)
        self._drawn = True
