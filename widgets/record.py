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
from workbench.step import Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

VERSION = 3  # 2: variants that were put away, and a task that was chosen in the bench; 3: a type each
PLACE = Path("runs") / "benches"
NAME, LOCK, TASK, WEIGHTS = "record.json", "lock", "task.json", "weights"
KEPT, MOST = 5, 20  # records of one model and task, and of all; older ones go
LEARNED = ("finetune", "distil")  # families whose weights a recipe alone does not give back soon


class Made(Value):
    """What something in a record was made of.

    Attributes:
        source: what was loaded.
        dtype: of its activations; empty for the base's.
        recipe: steps as JSON.
    """

    source: str
    dtype: str = ""
    recipe: tuple[dict[str, JsonValue], ...]

    @property
    def made_of(self) -> tuple[str, str, tuple[dict[str, JsonValue], ...]]:
        """What was loaded, in which type, and the steps."""
        return self.source, self.dtype, self.recipe


class KeptVariant(Made):
    """A variant of a record.

    Attributes:
        name: as the list has it.
        chosen: whether it was ticked.
        archived: whether it was put away.
        seconds: that its last step took; 0 where nobody measured it.
    """

    name: str
    recipe: tuple[dict[str, JsonValue], ...] = ()
    chosen: bool = True
    archived: bool = False
    seconds: float = 0.0

    @property
    def steps(self) -> Recipe:
        """As steps that can be applied."""
        return Recipe(step_from_json(dict(each)) for each in self.recipe)


class KeptWeights(Made):
    """What was learned by the last step, as an export in the record's folder.

    Attributes:
        folder: of the export, within the record's.
    """

    folder: str = Field(pattern=r"^weights/[0-9a-f]{12}$")  # of this record alone: it is removed when nothing needs it

    def serves(self, variant: KeptVariant) -> bool:
        """Whether a variant can be made from it."""
        alike = (self.source, self.dtype) == (variant.source, variant.dtype)
        return alike and variant.recipe[: len(self.recipe)] == self.recipe


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
        weights: that were learned.
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
    weights: tuple[KeptWeights, ...] = ()
    turns: tuple[KeptTurn, ...] = ()
    runs: tuple[Run, ...] = ()
    knobs: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What making all variants again takes, as far as that was measured."""
        learned = [each.made_of for each in self.weights]
        return sum(each.seconds for each in self.variants if each.made_of not in learned)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to bring back."""
        return len(self.variants) < 2 and not self.turns and not self.runs


def made_of(variant: Variant) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """What was loaded, in which type, and the steps as JSON."""
    return variant.source, str(variant.dtype).removeprefix("torch."), tuple(each.to_json() for each in variant.recipe)


def learned(variant: Variant) -> bool:
    """Whether a variant's last step learned."""
    last = list(variant.recipe)[-1:]
    return any(isinstance(step, Step) and step.family() in LEARNED for step in last)


class Journal:
    """The folder of one bench's record; a lock in it tells others that the bench lives.

    Args:
        folder: its own, which is made when something is first written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: Any = None
        self._task: Task | Text | None = None  # as it was written last

    @property
    def begun(self) -> bool:
        """Whether something was written."""
        return self._lock is not None

    def write(self, record: Record, task: Task | Text | None) -> None:
        """Put a record in the place of the one before.

        Raises:
            WorkbenchError: it cannot be written; the one before is as it was.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # conversations are nobody else's
            if self._lock is None:
                self._lock = _locked(self.folder / LOCK)
            write(self.folder, record, task, anew=task is not self._task)
            self._task = task
        except OSError as error:
            raise WorkbenchError(
                f"What this bench does is no longer recorded ({error.strerror}): free some space, or save it elsewhere."
            ) from None

    def export(self, variant: Variant) -> KeptWeights:
        """Write a variant's weights beside the record.

        Raises:
            WorkbenchError: they cannot be written.
        """
        place = _new_weights()
        variant.save(self.folder / place)
        source, dtype, recipe = made_of(variant)
        return KeptWeights(source=source, dtype=dtype, recipe=recipe, folder=place)

    def carry(self, weights: KeptWeights, folder: Path) -> KeptWeights:
        """Take over an export from another record's folder; one that is not there stays what it is.

        Raises:
            OSError: it cannot be written.
        """
        if not (folder / weights.folder).is_dir():
            return weights
        place = _new_weights()
        (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder / weights.folder, self.folder / place, copy_function=_linked)
        return weights.model_copy(update={"folder": place})

    def drop(self, weights: KeptWeights) -> None:
        """Remove an export that nothing needs any more."""
        shutil.rmtree(self.folder / weights.folder, ignore_errors=True)

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def write(folder: Path, record: Record, task: Task | Text | None, anew: bool = True) -> None:
    """Put a record and its task, if that is not there yet (`anew`), into a folder.

    Raises:
        OSError: it cannot be written.
    """
    if task is not None and anew:
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
    return Journal(PLACE.resolve() / f"{key}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(3).hex()}")


def earlier(base: Variant, task: Task | Text | None) -> tuple[Path, Record] | None:
    """The newest record of a bench on this model and task whose kernel is gone and that has something in it."""
    for folder in _folders(_key(base, task)):
        with contextlib.suppress(InvalidInput):
            if not _alive(folder) and not (found := read(folder)).empty:
                return folder, found
    return None


def forget(base: Variant, task: Task | Text | None) -> None:
    """Remove all but the newest records, of this model and task and of all."""
    others = sorted(PLACE.glob("*-*"), key=lambda each: each.name[13:], reverse=True)[MOST:]
    for folder in [*list(_folders(_key(base, task)))[KEPT:], *others]:
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
        _locked(folder / LOCK).close()
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _locked(path: Path) -> Any:
    """A file that is this process' alone until it is closed.

    Raises:
        OSError: it is another's, or cannot be opened.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _new_weights() -> str:
    """A folder for an export within a record's, that nobody uses."""
    return f"{WEIGHTS}/{os.urandom(6).hex()}"


def _linked(source: str, target: str) -> None:
    """A second name for a file where the disk allows that, else a copy."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def _write(path: Path, value: Any) -> None:
    with files.whole(path) as place:
        place.write_text(json.dumps(value, allow_nan=True), encoding="utf-8")
