"""A line of progress for a long call in a terminal that nobody watches otherwise."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from workbench.core import units
from workbench.core.progress import Progress

PATIENCE = 1.0  # seconds: what is shorter shows nothing
WIDTH = 24  # of the bar, in characters
P = ParamSpec("P")
T = TypeVar("T")
_open = threading.Lock()


def said(progress: Progress) -> str:
    """How far it is, in a line."""
    full = round(WIDTH * progress.fraction)
    left = "" if progress.eta is None else f", about {units.duration(progress.eta)} left"
    return f"[{'#' * full}{'.' * (WIDTH - full)}] {100 * progress.fraction:3.0f} % {progress.label}{left}"


@contextmanager
def shown() -> Iterator[Progress]:
    """The progress of a call that was given none: a line on a terminal, wiped away at the end.

    Silent in other threads than the main one, inside another call, where the output is a file or a pipe, and with
    ``WORKBENCH_QUIET`` set.
    """
    write = _place()
    if write is None or not _open.acquire(blocking=False):
        yield Progress()
        return
    begun, drawn, ended = time.monotonic(), False, False
    drawing = threading.Lock()  # the last report before a silence comes from another thread

    def listen(progress: Progress) -> None:
        nonlocal drawn
        with drawing:
            if time.monotonic() - begun >= PATIENCE and not ended:
                drawn = True
                write(said(progress))

    try:
        yield Progress(listen)
    finally:
        with drawing:
            ended = True
            if drawn:
                write("")
        _open.release()


def _place() -> Any:
    """What shows a line, or None."""
    if os.environ.get("WORKBENCH_QUIET") or threading.current_thread() is not threading.main_thread():
        return None
    if sys.stderr is not None and sys.stderr.isatty():
        return lambda line: print(f"\r\x1b[2K{_fitted(line)}", end="", file=sys.stderr, flush=True)
    return None


def _fitted(line: str) -> str:
    """No longer than the terminal is wide, and free of control characters that a name may hold."""
    try:
        wide = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        wide = 80
    return "".join(each if each.isprintable() else " " for each in line)[: wide - 1]


def watched(function: Callable[P, T]) -> Callable[P, T]:
    """A long call that shows its line where its caller gave it no ``progress``."""
    named = signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = named.bind_partial(*args, **kwargs)
        if given.arguments.get("progress") is not None:
            return function(*args, **kwargs)
        with shown() as progress:
            given.arguments["progress"] = progress
            return function(*given.args, **given.kwargs)

    return call
