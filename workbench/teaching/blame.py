"""An error of somebody's own code in one sentence: what is still to be written, or what fails and in which line."""

import traceback

from workbench.core.errors import WorkbenchError, first_line


def blame(kind: type, error: Exception) -> str:
    """What went wrong in the methods of a class, for who wrote it.

    Args:
        kind: the class.
        error: that came out of it.
    """
    name = kind.__name__
    files = {code.co_filename for each in vars(kind).values() if (code := getattr(each, "__code__", None))}
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename in files]
    where = f"{name}.{frames[-1].name}" if frames else name
    if isinstance(error, NotImplementedError):
        said = str(error).strip()
        return f"{where} is still to be written{f': {first_line(error)}' if said else ''}."
    if isinstance(error, WorkbenchError):
        return str(error)
    line = f", line {frames[-1].lineno} of its cell" if frames else ""
    return f"{where} fails{line}: {type(error).__name__}, {first_line(error)}."
