"""A file from the reader's own computer, brought to where the kernel runs."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import anywidget
import traitlets

from widgets.parts import ui
from workbench.core import units
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.files import LONGEST_NAME, write_refused
from workbench.tasks.files import stem_of

PLACE = Path("uploads")
MOST = 500_000_000  # bytes: what is larger goes through a notebook's connection too slowly


class Drop(ui.Control, anywidget.AnyWidget):
    """A place to drop a file on; it is written whole to `uploads/`, under a name that nothing there has.

    Args:
        check: refuses a file by its name, by raising `InvalidInput`.
        arrived: called with the path of a file that has come.
        accept: endings that the page offers to choose.
    """

    _esm = Path(__file__).with_name("drop.js")
    accept = traitlets.Unicode().tag(sync=True)

    def __init__(self, check: Callable[[Path], None], arrived: Callable[[Path], None], accept: str = "") -> None:
        super().__init__(accept=accept)
        self._check, self._arrived = check, arrived
        self._file: BinaryIO | None = None
        self._path = Path()
        self._left = 0
        self.on_msg(lambda _, said, buffers: self.send(self.heard(said, buffers)))

    def heard(self, said: dict[str, Any], buffers: list[Any]) -> dict[str, str]:
        """Take what a page sends: the beginning of a file, a piece of it, or its end; returns what is answered."""
        try:
            if "begin" in said:
                self._begin(str(said["begin"]), int(said["size"]))
            elif "end" in said:
                return {"done": self._end()}
            else:
                self._take(buffers[0])
        except WorkbenchError as error:
            self._forget()
            return {"error": str(error)}
        except OSError as error:
            self._forget()
            return {"error": str(write_refused(self._path, error))}
        return {}

    def close(self) -> None:
        """Take it off the page; what was on its way is dropped."""
        self._forget()
        super().close()

    def _begin(self, name: str, size: int) -> None:
        self._forget()
        self._path = _free(PLACE / safe(name))
        self._check(self._path)
        if size > MOST:
            raise InvalidInput(
                f"'{self._path.name}' has {units.size(size)}, more than the {units.size(MOST)} that can be dropped "
                "here: copy it to where the notebook is, and type its path."
            )
        PLACE.mkdir(exist_ok=True)
        self._file, self._left = self._partial.open("wb"), size

    def _take(self, piece: Any) -> None:
        if self._file is None or len(piece) > self._left:
            raise InvalidInput("The file did not arrive in order: choose it again.")
        self._left -= len(piece)
        self._file.write(piece)

    def _end(self) -> str:
        if self._file is None or self._left:
            raise InvalidInput("The file did not arrive whole: choose it again.")
        self._file.close()
        self._file = None
        self._partial.replace(self._path)
        self._arrived(self._path)
        return f"Kept as {self._path}."

    def _forget(self) -> None:
        """Leave nothing of a file that did not come to its end."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._partial.unlink(missing_ok=True)

    @property
    def _partial(self) -> Path:
        return self._path.with_name(f".{self._path.name}.part")


def safe(name: str) -> str:
    """A file's name with letters of any script, digits and ``. _ + -`` alone, its ending kept."""
    last = name.replace("\\", "/").rpartition("/")[2]
    clean = "".join(each if each.isalnum() or each in "._+- " else "_" for each in last).strip(" ._")
    stem, dot, ending = clean.rpartition(".")
    longest = (LONGEST_NAME - 20) // 2
    return f"{stem[:longest]}{dot}{ending[:20]}" if stem else clean[:longest] or "data"


def _free(path: Path) -> Path:
    stem = stem_of(path)
    tried = (path.with_name(f"{stem} {number}{path.name[len(stem) :]}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], tried) if not each.exists())
