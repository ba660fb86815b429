"""What a bench knows and does, without a screen: its variants, its worker, its task, what was measured."""

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from widgets import record
from widgets.jobs import Jobs
from widgets.record import KeptVariant, KeptWeights, Record
from widgets.shelf import Shelf
from workbench.answering.speaker import Respondent
from workbench.core import files, units
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.jobs import Job
from workbench.core.progress import Progress
from workbench.layers.sensitivity import Sensitivity
from workbench.measurement.comparison import Comparison
from workbench.models.export import swap
from workbench.serving.card import picked
from workbench.serving.deploy import deploy
from workbench.serving.launch import Target
from workbench.step import Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

EXPORTS = Path("exports")


class Session(Shelf, Jobs):
    """Variants by name and one worker. Safe to use from callbacks, the worker and notebook cells at once.

    Attributes:
        task: what steps calibrate on and comparisons measure, or None.
        comparison: the last one measured, or None.
        sensitivity: the last one measured, or None.
        panels: those that were opened.
        knobs: what the others stood at in an earlier record, by family.
        journal: where all of it is recorded as it changes.
        kept: what else is recorded, by its name in the record: the conversation.
        weights: what was learned, in the record.
        lost: variants of an earlier record that could not be made again, which stay recorded.
    """

    def __init__(self, base: Variant, task: Task | Text | None = None) -> None:
        Shelf.__init__(self, base)
        Jobs.__init__(self, self.lock)
        self.task = task
        self.comparison: Comparison | None = None
        self.sensitivity: Sensitivity | None = None
        self.panels: list[Any] = []
        self.knobs: dict[str, dict[str, Any]] = {}
        self._start = base.name
        record.forget(base, task)
        self.journal = record.journal(base, task)
        self.kept: dict[str, Callable[[], Any]] = {}
        self.weights: tuple[KeptWeights, ...] = ()
        self.lost: tuple[KeptVariant, ...] = ()
        self._held = self._unkept = False

    def use(self, task: Task | Text | None) -> None:
        """Calibrate and measure on another task from now on; what was measured on the one before stays on screen."""
        with self.lock:
            self._check_open()
            self.task = task
            self._changed()

    def measured(self, comparison: Comparison) -> None:
        """Keep a comparison as the last one."""
        with self.lock:
            self.comparison = comparison
            self._changed()

    def add(self, variant: Respondent, seconds: float = 0.0) -> str:
        """Put a variant or an endpoint on the list; returns its name. What was learned is recorded, as an export."""
        with self.lock:
            self._check_open()
            before = len(self._variants)
            name = super().add(variant, seconds)
            if len(self._variants) > before:
                self._keep_weights(self[name])
        return name

    def export(self, name: str, folder_name: str) -> str:
        """Write a variant to a folder under exports/; returns a sentence that says where."""
        variant = self[name]
        if not isinstance(variant, Variant):
            raise InvalidInput(f"'{name}' answers elsewhere: its weights cannot be saved from here.")
        path = variant.save(files.inside(EXPORTS, folder_name.strip()))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return f"Saved to {path}, {units.size(size)} on disk. Load it with wb.load('{path}')."

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the whole bench to a folder: recipes, names, conversation, the last comparison, what was learned.

        Raises:
            InvalidInput: something else is there, or it is a bench and `overwrite` is False.
            WorkbenchError: it cannot be written.
        """
        folder = files.home(path)
        if folder.exists() and not (overwrite and (folder / record.NAME).is_file()):
            raise InvalidInput(f"'{folder}' exists: choose another path, or overwrite=True if it is a saved bench.")
        with self.lock:
            kept = self.record
            known = [each.made_of for each in kept.weights]
            learned = filter(record.learned, self.variants.values())
            variants = [each for each in learned if record.made_of(each) not in known]
        place = files.sibling(folder)
        journal = record.Journal(place)
        try:
            place.mkdir(parents=True)
            weights = tuple(journal.carry(each, self.journal.folder) for each in kept.weights)
            weights += tuple(map(journal.export, variants))
            record.write(place, kept.model_copy(update={"weights": weights}), self.task)
            files.to_disk(place)
            swap(place, folder)
        except OSError as error:
            raise files.write_refused(folder, error) from None
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return folder

    def deploy(self, name: str, folder_name: str, target: Target, progress: Progress) -> str:
        """Write a variant to a folder under exports/ that another program runs, and try it there; says what came of it.

        Its card shows the figures of the last comparison, where the variant is in it.
        """
        variant = self[name]
        if not isinstance(variant, Variant):
            raise InvalidInput(f"'{name}' answers elsewhere: its weights cannot be deployed from here.")
        place = files.inside(EXPORTS, f"{folder_name.strip()}-{target}")
        measured = None
        with contextlib.suppress(InvalidInput):  # it was not among them
            measured = self.comparison if picked(self.comparison, variant) else None
        found = deploy(variant, place, target, measured=measured, progress=progress)
        start = shlex.quote(str(place / "run.sh"))
        return f"Deployed to {place}, {units.size(found.bytes)}; {found.tried}. Start it with: sh {start}"

    @property
    def start(self) -> str:
        """The variant that the next step starts from, unless its panel says another."""
        known = self._start in self.variants and self._start not in self.archived
        return self._start if known else self.base.name

    def go_on(self, name: str) -> None:
        """Let the next step, of any family, start from a variant."""
        with self.lock:
            self._start = name
            for panel in self.panels:
                panel.target.value = name

    def rename(self, old: str, new: str) -> None:
        """Give a variant another name; what stood to be applied to it still does.

        Raises:
            InvalidInput: the name is taken or unsafe, or there is no such variant.
        """
        with self.lock:
            started, following = self._start == old, [each for each in self.panels if each.target.value == old]
            new = files.check_name(new.strip())
            super().rename(old, new)
            self._start = new if started else self._start
            for panel in following:
                panel.target.value = new

    def turn_to(self, step: Step) -> None:
        """Set the panels of a step's family to it."""
        for panel in self.panels:
            if panel.family == step.family():
                panel.set(step)

    def close(self) -> None:
        """Stop the worker and let go of every variant but the base."""
        with self.lock:
            if self.closed:
                return
            self.end()
            self._watchers.clear()
            self._variants = {self.base.name: self.base}
            self._chosen = {self.base.name: None}
            self.journal.close()

    def _changed(self) -> None:
        super()._changed()
        self.keep()

    @property
    def record(self) -> Record:
        """All that is needed to bring the bench back: recipes, names, conversation, the last comparison."""
        with self.lock:
            variants = tuple(self._kept_variant(name, each) for name, each in self.variants.items()) + self.lost
            return Record(
                device=self.base.device.type,
                dtype=str(self.base.dtype).removeprefix("torch."),
                task=self.task.name if self.task is not None else "",
                variants=variants,
                weights=tuple(each for each in self.weights if any(map(each.serves, variants))),
                runs=tuple(self.comparison.runs) if self.comparison else (),
                knobs=self.knobs
                | {panel.family: panel.step.to_json() for panel in self.panels if panel.settings[0] is not None},
                **{name: get() for name, get in self.kept.items()},
            )

    def keep(self) -> None:
        """Record how the bench stands; a disk that refuses takes nothing away, and is told of once."""
        with self.lock:
            if self.closed or self._held:
                return
            try:
                now = self.record
                if not now.empty or self.journal.begun:
                    self.journal.write(now, self.task)
                for each in self.weights:  # those alone: another may be on its way to the disk
                    if each not in now.weights:
                        self.journal.drop(each)
                self.weights, self._unkept = now.weights, False
            except WorkbenchError as error:
                if not self._unkept:
                    self._unkept = True
                    self.warn(str(error))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Record nothing until the end: what is on disk counts as long as it is whole and this is not."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.keep()

    def _keep_weights(self, variant: Respondent) -> None:
        """Queue an export of what a variant's last step learned."""
        if not isinstance(variant, Variant) or not record.learned(variant):
            return
        if record.made_of(variant) in [each.made_of for each in self.weights]:
            return
        todo = [variant]

        def work(progress: Progress) -> None:
            found = self.journal.export(todo.pop())
            with self.lock:
                self.weights = (*self.weights, found)
                self.keep()

        def show(job: Job) -> None:
            if job.status == "failed":
                self.warn(f"The weights of '{variant.name}' are not recorded, only its recipe. {job.error}")

        with contextlib.suppress(InvalidInput):  # too much waits: its recipe is recorded
            self.submit(f"Record {variant.name}", work, show)

    def _kept_variant(self, name: str, variant: Variant) -> KeptVariant:
        source, dtype, recipe = record.made_of(variant)
        marks = {"chosen": name in self._chosen, "archived": name in self._archived}
        seconds = self._seconds.get(name, 0.0)
        return KeptVariant(name=name, source=source, dtype=dtype, recipe=recipe, seconds=seconds, **marks)

    def warn(self, sentence: str) -> None:
        """Say something that belongs to no button; the bench overrides it."""
