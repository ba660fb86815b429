"""What a bench was last, on disk: written whole at every change, so that a restart of the kernel loses nothing."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from workbench.core import files
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.value import Value
from workbench.measurement.runs import Run
from workbench.recipe import Recipe, step_from_json
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

VERSION = 1
PLACE = Path("runs") / "benches"
NAME, LOCK, TASK, WEIGHTS = "record.json", "lock", "task.json", "weights"
KEPT = 5  # records of one model and task; older ones go
LEARNED = ("finetune", "distil")  # families whose weights a recipe alone does not give back soon


class KeptVariant(Value):
    """A variant of a record.

    Attributes:
        name: as the list has it.
        source: what was loaded.
        recipe: steps as JSON.
        chosen: whether it was ticked.
        seconds: that its last step took; 0 where nobody measured it.
        weights: folder of an export of it within the record's, where they were learned.
    """

    name: str
    source: str
    recipe: tuple[dict[str, JsonValue], ...] = ()
    chosen: bool = True
    seconds: float = 0.0
    weights: str = ""

    @property
    def steps(self) -> Recipe:
        """As steps that can be applied."""
        return Recipe(step_from_json(dict(each)) for each in self.recipe)


class KeptAnswer(Value):
    """What one variant said."""

    name: str
    text: str
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    state: str = "done"


class KeptTurn(Value):
    """A question and its answers."""

    prompt: str
    answers: tuple[KeptAnswer, ...] = ()


class Record(Value):
    """All that a bench needs to be as it was.

    Attributes:
        version: of this layout.
        saved: UTC time, ISO 8601.
        device: where its variants ran.
        dtype: of their activations.
        task: name of what they were measured on; empty for none.
        variants: the base first.
        turns: of the conversation.
        runs: of the last comparison.
        knobs: what each panel was set to, by family.
    """

    version: int = VERSION
    saved: str = Field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    device: str
    dtype: str
    task: str = ""
    variants: tuple[KeptVariant, ...]
    turns: tuple[KeptTurn, ...] = ()
    runs: tuple[Run, ...] = ()
    knobs: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What making all variants again takes, as far as that was measured."""
        return sum(each.seconds for each in self.variants if not each.weights)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to bring back."""
        return len(self.variants) < 2 and not self.turns and not self.runs


def learned(variant: Variant) -> bool:
    """Whether some of a variant's weights were learned."""
    return any(type(step).family() in LEARNED for step in variant.recipe)  # type: ignore[attr-defined]


class Journal:
    """The folder of one bench's record; a lock in it tells others that the bench lives.

    Args:
        folder: its own, which is made when something is first written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: Any = None

    def write(self, record: Record, task: Task | Text | None) -> None:
        """Put a record in the place of the one before.

        Raises:
            WorkbenchError: it cannot be written; the one before is as it was.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = (self.folder / LOCK).open("w")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write(self.folder, record, task)
        except OSError as error:
            raise WorkbenchError(
                f"What this bench does is no longer recorded ({error.strerror}): free some space, or save it elsewhere."
            ) from None

    def export(self, variant: Variant) -> str:
        """Write a variant's weights beside the record; gives the folder's name within the record's.

        Raises:
            WorkbenchError: it cannot be written.
        """
        name = f"{len(list((self.folder / WEIGHTS).glob('*'))) + 1}"
        variant.save(self.folder / WEIGHTS / name)
        return f"{WEIGHTS}/{name}"

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def write(folder: Path, record: Record, task: Task | Text | None) -> None:
    """Put a record and its task into a folder.

    Raises:
        OSError: it cannot be written.
    """
    if task is not None and not (folder / TASK).exists():
        _write(folder / TASK, {"kind": type(task).__name__, "task": task.model_dump(mode="json")})
    _write(folder / NAME, record.model_dump(mode="json"))


def read(folder: Path) -> Record:
    """The record of a folder.

    Raises:
        InvalidInput: there is none, it is damaged, or a newer workbench wrote it.
    """
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        newer = isinstance(found, dict) and isinstance(found.get("version"), int) and found["version"] > VERSION
        if not newer:
            return Record.model_validate(found)
    except OSError as error:
        raise InvalidInput(f"There is no saved bench in '{folder}' ({error.strerror}).") from None
    except (ValueError, ValidationError):
        raise InvalidInput(f"The record of the bench in '{folder}' is damaged: it cannot be restored.") from None
    raise InvalidInput(f"The bench in '{folder}' was saved by a newer workbench: update this one to open it.")


def read_task(folder: Path) -> Task | Text | None:
    """The task of a record; None if it had none.

    Raises:
        InvalidInput: it is damaged.
    """
    if not (folder / TASK).exists():
        return None
    try:
        found = json.loads((folder / TASK).read_text(encoding="utf-8"))
        return {"Task": Task, "Text": Text}[found["kind"]].model_validate(found["task"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidInput(f"The task of the bench in '{folder}' is damaged: it cannot be restored.") from None


def journal(base: Variant, task: Task | Text | None) -> Journal:
    """A new one for a bench on this model and task."""
    key = _key(base, task)
    return Journal(PLACE / f"{key}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(3).hex()}")


def earlier(base: Variant, task: Task | Text | None) -> tuple[Path, Record] | None:
    """The newest record of a bench on this model and task whose kernel is gone and that has something in it."""
    for folder in _folders(_key(base, task)):
        with contextlib.suppress(InvalidInput):
            if not _alive(folder) and not (found := read(folder)).empty:
                return folder, found
    return None


def forget(base: Variant, task: Task | Text | None) -> None:
    """Remove all but the newest records of this model and task."""
    for folder in list(_folders(_key(base, task)))[KEPT:]:
        if not _alive(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _folders(key: str) -> Iterator[Path]:
    """Records of a key, the newest first."""
    yield from sorted(PLACE.glob(f"{key}-*"), key=lambda each: each.name, reverse=True)


def _key(base: Variant, task: Task | Text | None) -> str:
    facts = (base.source, base.recipe.to_json(), str(base.dtype), task.fingerprint if task is not None else "")
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _alive(folder: Path) -> bool:
    """Whether the bench of a record still lives."""
    try:
        with (folder / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _write(path: Path, value: Any) -> None:
    with files.whole(path) as place:
        place.write_text(json.dumps(value, allow_nan=True), encoding="utf-8")
