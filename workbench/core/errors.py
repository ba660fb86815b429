"""Every error the workbench raises on purpose: what happened and what to do next, in one plain sentence."""


class WorkbenchError(Exception):
    """Root of all errors raised on purpose; anything else that escapes is a bug."""


class InvalidInput(WorkbenchError, ValueError):
    """A value, file or name given by the user cannot be used."""


class NotAvailable(WorkbenchError):
    """A model, file or optional package is not on this machine and could not be fetched."""


class Corrupt(WorkbenchError):
    """A file does not hold what its recorded hash says."""


class OutOfMemory(WorkbenchError):
    """The device ran out of memory; every existing variant is as it was."""


class Incomparable(WorkbenchError):
    """Two runs differ in something that makes their numbers incomparable."""


class Cancelled(WorkbenchError):
    """The user cancelled; nothing was changed."""

    def __init__(self) -> None:
        super().__init__("Cancelled: nothing was changed.")


class TimeUp(Cancelled):
    """The time that work was given is over; nothing was changed."""


class Busy(WorkbenchError):
    """Too many requests wait already; nothing was done for this one."""


class Closed(WorkbenchError):
    """The variant was closed and its memory returned."""


def first_line(error: BaseException, longest: int = 200) -> str:
    """What another library's error says, cut to its first line; its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:longest]
