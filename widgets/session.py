"""What a bench knows and does, without a screen: its variants, its worker, what is chosen, what was measured."""

import contextlib
import itertools
import shlex
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from widgets import record
from widgets.record import KeptVariant, KeptWeights, Record
from workbench.answering.speaker import Respondent
from workbench.core import files, units
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.jobs import Job, Worker
from workbench.core.progress import Progress, Throttle
from workbench.display import COLOURS
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


class Session:
    """Variants by name and one worker. Safe to use from callbacks, the worker and notebook cells at once.

    Attributes:
        base: the first variant; it cannot be removed.
        task: what steps calibrate on and comparisons measure, or None.
        comparison: the last one measured, or None.
        sensitivity: the last one measured, or None.
        lock: held while variants or what is on screen change; never while a model works.
        journal: where all of it is recorded as it changes.
        kept: what else is recorded, by its name in the record: the conversation.
        weights: what was learned, in the record.
        lost: variants of an earlier record that could not be made again, which stay recorded.
    """

    def __init__(self, base: Variant, task: Task | Text | None = None) -> None:
        if not isinstance(base, Variant):
            raise InvalidInput(f"Bench() takes a variant, such as workbench.load(), not {type(base).__name__}.")
        self.base = base
        self.task = task
        self.comparison: Comparison | None = None
        self.sensitivity: Sensitivity | None = None
        self.lock = threading.RLock()
        self._idle = threading.Condition(self.lock)
        self._variants: dict[str, Respondent] = {base.name: base}
        self._colours = {base.name: COLOURS[0]}
        self._palette = itertools.cycle(COLOURS[1:])
        self._chosen = {base.name}
        self.panels: list[Any] = []
        self._watchers: list[Callable[[], None]] = []
        self._open: dict[Job, str] = {}  # jobs whose end is not on screen yet, and what each would make
        self._wanted: dict[Any, Callable[[], None]] = {}
        self._computing: Job | None = None
        self._worker = Worker()
        record.forget(base, task)
        self.journal = record.journal(base, task)
        self.kept: dict[str, Callable[[], Any]] = {}
        self.weights: tuple[KeptWeights, ...] = ()
        self.lost: tuple[KeptVariant, ...] = ()
        self._seconds: dict[str, float] = {}
        self._held = self._unkept = False
        self.closed = False

    @property
    def variants(self) -> dict[str, Variant]:
        """The variants by name, the base first; a copy."""
        with self.lock:
            return {name: each for name, each in self._variants.items() if isinstance(each, Variant)}

    @property
    def respondents(self) -> dict[str, Respondent]:
        """Variants and endpoints by name, in the order of the list; a copy."""
        with self.lock:
            return dict(self._variants)

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the variants chosen for chat and comparison, in the order of the list."""
        with self.lock:
            return tuple(name for name in self._variants if name in self._chosen)

    def choose(self, name: str, chosen: bool = True) -> None:
        """Choose a variant for chat and comparison, or no longer."""
        with self.lock:
            self[name]
            (self._chosen.add if chosen else self._chosen.discard)(name)
            self._changed()

    def colour(self, name: str) -> str:
        """The colour that a variant keeps in lists and charts."""
        return self._colours.get(name, COLOURS[0])

    def __getitem__(self, name: str) -> Respondent:
        with self.lock:
            if name not in self._variants:
                raise InvalidInput(f"There is no variant '{name}' in this bench: it has {', '.join(self._variants)}.")
            return self._variants[name]

    def add(self, variant: Respondent, seconds: float = 0.0) -> str:
        """Put a variant or an endpoint on the list; returns its name, with a number added if the name is taken.

        What was learned is recorded, as an export.

        Args:
            variant: what is added.
            seconds: that making it took, where that is known.
        """
        if not isinstance(variant, Respondent):
            raise InvalidInput(f"bench.add() takes a variant or an endpoint, not {type(variant).__name__}.")
        with self.lock:
            self._check_open()
            for name, each in self._variants.items():
                if each == variant:  # whatever it is called elsewhere
                    return name
            name = self._free_name(variant.name)
            if name != variant.name:
                variant = variant.under(name)
            self._variants[name] = variant
            self._colours[name] = next(self._palette)
            self._chosen.add(name)
            self._seconds[name] = seconds
            self._changed()
            self._keep_weights(variant)
        return name

    def remove(self, name: str) -> None:
        """Take a variant off the list; its memory returns once nothing else uses it.

        Raises:
            InvalidInput: it is the base, or there is no such variant.
        """
        with self.lock:
            if self[name] == self.base:
                raise InvalidInput(f"'{name}' is the baseline of this bench and cannot be removed.")
            del self._variants[name], self._colours[name]
            self._chosen.discard(name)
            self._seconds.pop(name, None)
            self._changed()

    def rename(self, old: str, new: str) -> None:
        """Give a variant another name.

        Raises:
            InvalidInput: the name is taken or unsafe, or there is no such variant.
        """
        with self.lock:
            variant = self[old]
            new = files.check_name(new.strip())
            if new == old:
                return
            if new in self._variants:
                raise InvalidInput(f"There is already a variant '{new}': choose another name.")
            renamed = variant.under(new)
            if variant == self.base:
                self.base = renamed
            self._variants = {new if name == old else name: each for name, each in self._variants.items()}
            self._variants[new] = renamed
            self._colours[new] = self._colours.pop(old)
            self._seconds[new] = self._seconds.pop(old, 0.0)
            if old in self._chosen:
                self._chosen.remove(old)
                self._chosen.add(new)
            self._changed()

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
            known = [(each.source, each.recipe) for each in kept.weights]
            variants = [each for each in self.variants.values() if record.learned(each) and _made_of(each) not in known]
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

    def turn_to(self, step: Step) -> None:
        """Set the panels of a step's family to it."""
        for panel in self.panels:
            if panel.family == step.family():
                panel.set(step)

    def watch(self, changed: Callable[[], None]) -> None:
        """Call this whenever the list of variants, or what is chosen, has changed."""
        self._watchers.append(changed)

    def submit(
        self, label: str, work: Callable[[Progress], Any], show: Callable[[Job], None] | None = None, key: str = ""
    ) -> Job:
        """Queue work for the worker.

        Args:
            label: what it does, for people.
            work: what to do; it may use models.
            show: called at most five times a second while it is queued or runs, and once when it has ended.
            key: what it would make; a second job for the same is refused while the first is open.

        Raises:
            InvalidInput: too many jobs wait, the same is under way already, or the bench was closed.
        """
        shown = ["queued"]
        todo = [work]  # emptied at the end: an ended job must not keep a variant's memory
        told: list[Job] = []

        def tell() -> None:
            with self.lock:
                job = told[-1]
                if job not in self._open:  # its end was told while this waited
                    return
                shown[0] = job.status
                if job.ended:
                    self._open.pop(job, None)
                    todo.clear()
                try:
                    if not self.closed:
                        if show:
                            show(job)
                        self._show_status()
                except Exception:  # it may be said late, where nobody would hear of it
                    job.details = job.details or traceback.format_exc()
                finally:
                    self._idle.notify_all()

        throttle = Throttle(tell)

        def listen(job: Job) -> None:
            told[:] = [job]
            throttle(force=job.ended or job.status != shown[0], late=not job.progress.undisturbed)

        with self.lock:
            self._check_open()
            if key and key in self._open.values():
                raise InvalidInput(f"{label} is under way already: wait for it or cancel it.")
            job = self._worker.submit(label, lambda progress: todo.pop()(progress), listen)
            self._open[job] = key
            self._show_status()
        return job

    def compute(self, key: Any, work: Callable[[], None]) -> None:
        """Run something short on the worker when it is free; only the newest for a key is run, and nobody sees it."""
        with self.lock:
            if self.closed:
                return
            self._wanted[key] = work
            if self._computing is None:
                try:
                    self._computing = self._worker.submit("", self._compute_wanted)
                except InvalidInput:  # the queue is full: the next change asks again
                    self._wanted.clear()

    def _compute_wanted(self, progress: Progress) -> None:
        while True:
            with self.lock:
                if not self._wanted or self.closed:
                    self._computing = None
                    self._idle.notify_all()
                    return
                work = self._wanted.pop(next(iter(self._wanted)))
            with contextlib.suppress(Exception):  # a forecast that fails must not stop the next one
                work()

    @property
    def jobs(self) -> Sequence[Job]:
        """Jobs that people wait for, the running one first."""
        return tuple(job for job in self._worker.jobs if job.label)

    def cancel(self) -> None:
        """Cancel the running job; it stops at its next report and changes nothing."""
        if jobs := self.jobs:
            jobs[0].cancel()
            with self.lock:
                self._show_status()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every job has ended and is on screen; False when the timeout (seconds) passed first."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._open and self._computing is None, timeout)

    def close(self) -> None:
        """Stop the worker and let go of every variant but the base."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._worker.close()
            self._watchers.clear()
            self._wanted.clear()
            self._open.clear()
            self._computing = None
            self._variants = {self.base.name: self.base}
            self._chosen = {self.base.name}
            self.journal.close()
            self._idle.notify_all()

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidInput("This bench was closed: run its cell again.")

    def _free_name(self, name: str) -> str:
        numbered = (f"{name} {number}" for number in itertools.count(2))
        return next(each for each in itertools.chain([name], numbered) if each not in self._variants)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()
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
                knobs={panel.family: panel.step.to_json() for panel in self.panels if panel.settings[0] is not None},
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
        if _made_of(variant) in [(each.source, each.recipe) for each in self.weights]:
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
        source, recipe = _made_of(variant)
        chosen, seconds = name in self._chosen, self._seconds.get(name, 0.0)
        return KeptVariant(name=name, source=source, recipe=recipe, chosen=chosen, seconds=seconds)

    def warn(self, sentence: str) -> None:
        """Say something that belongs to no button; the bench overrides it."""

    def _show_status(self) -> None:
        """Say what is running; the bench overrides it."""


def _made_of(variant: Variant) -> tuple[str, tuple[dict[str, Any], ...]]:
    """What was loaded, and the steps as JSON."""
    return variant.source, tuple(each.to_json() for each in variant.recipe)
