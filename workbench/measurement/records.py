"""Records in a file: one JSON line each, appended whole, safe to read while it is written."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from workbench.core.errors import WorkbenchError

R = TypeVar("R", bound=BaseModel)


class Records(Generic[R]):
    """Records of one kind.

    Several notebooks may append and read at once. A process killed while writing loses at most its own line: a line
    that is cut off is skipped when reading and closed before the next append.

    Args:
        path: of the file.
        kind: of the records.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path, self._kind = path, kind

    def append(self, record: R) -> None:
        """Add a record.

        Raises:
            WorkbenchError: the file cannot be written.
        """
        line = record.model_dump_json().encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _ends_in_newline(file.fileno()):
                    line = b"\n" + line
                os.write(file.fileno(), line)
                os.fsync(file.fileno())
        except OSError as error:
            what = self._kind.__name__.lower()
            raise WorkbenchError(f"The {what} could not be added to '{self.path}': {error.strerror}.") from None

    def __iter__(self) -> Iterator[R]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield self._kind.model_validate_json(line)
                except ValidationError:  # cut off by a kill, or not yet written to its end
                    continue

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _ends_in_newline(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
