"""What an earlier bench on this model and task left: offered, and made again from its recipes or exports."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widgets import record
from widgets.parts import html, ui
from widgets.parts.message import Message
from widgets.parts.style import close_tree
from widgets.record import KeptVariant, Record
from workbench.core import units
from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.progress import Progress
from workbench.measurement.comparison import Comparison
from workbench.step import Step
from workbench.variant import Variant, load

if TYPE_CHECKING:
    from widgets.bench import Bench


class Restore:
    """The offer, above everything else; gone once it was taken or declined.

    Attributes:
        found: where the earlier record is, and what is in it; None for nothing.
        widget: what is shown.
    """

    def __init__(self, bench: "Bench") -> None:
        self.bench = bench
        self.found = record.earlier(bench.base, bench.task)
        self.said, self.message = ui.HTML(), Message(bench)
        self.take = ui.Button(
            description="Restore", button_style="primary", tooltip="Make these variants again and show what was said"
        )
        self.leave = ui.Button(description="Start anew", tooltip="Leave the earlier record on disk, and begin afresh")
        buttons = ui.HBox([self.take, self.leave])
        buttons.add_class("wb-footer")
        self.widget = ui.VBox([self.said, buttons, self.message])
        self.widget.add_class("wb-restore")
        self.take.on_click(lambda _: self.run())
        self.leave.on_click(lambda _: self.hide())
        if self.found is None:
            self.hide()
        else:
            self.said.value = html.message(offer(self.found[1]))

    def open(self, folder: Path, kept: Record) -> None:
        """Bring this record back, instead of an offer."""
        self.found, self.said.value = (folder, kept), ""
        ui.show(self.widget, True)
        self.run()

    def run(self) -> None:
        """Queue the making."""
        if self.found is None:
            return
        folder, kept = self.found
        with self.message.refusals():

            def work(progress: Progress) -> str:
                said = restore(self.bench, folder, kept, progress)
                with self.bench.lock:
                    ui.show(self.take, False)
                    ui.show(self.leave, False)
                    self.said.value = ""
                return said

            cancelled = "Restore: cancelled. What was made until then is on the list; Restore again makes the rest."
            self.message.submit("Restore", work, key="restore", cancelled=cancelled)

    def hide(self) -> None:
        """Take the offer away."""
        ui.show(self.widget, False)

    def close(self) -> None:
        """Remove it from the page."""
        close_tree(self.widget)


def offer(kept: Record) -> str:
    """What there is to bring back, and what it costs, in words."""
    named = ", ".join(each.name for each in kept.variants[1:4])
    parts = [f"{_many(len(kept.variants) - 1, 'variant')} ({named})"] if named else []
    parts += [_many(len(kept.turns), "question")] if kept.turns else []
    parts += [f"a comparison of {len(kept.runs)}"] if kept.runs else []
    exports = len(kept.weights)
    cost = [f"about {units.duration(kept.seconds)}"] if kept.seconds >= 1 else []
    cost += [f"{_many(exports, 'export')} read from disk"] if exports else []
    said = f" Making them again takes {', '.join(cost)}." if cost else ""
    return f"An earlier bench on this model and task, of {kept.saved.replace('T', ' ')}, left {', '.join(parts)}.{said}"


def restore(bench: "Bench", folder: Path, kept: Record, progress: Progress) -> str:
    """Bring a record's variants, conversation and comparison back; what fails is said, and the rest goes on.

    Until that is done nothing is recorded, so that a restore that is killed can be begun again.

    Raises:
        Cancelled: the progress was cancelled; what was made until then stays.
        InvalidInput: its task is damaged.
    """
    made = {_steps(*record.made_of(each)): each for each in bench.variants.values()}
    failed: list[str] = []
    waiting = list(kept.variants[1:])
    task = record.read_task(folder)
    if task is not None and (bench.task is None or bench.task.fingerprint != task.fingerprint):
        bench.use(task)
    with bench.held():
        bench.lost = tuple(each for each in bench.lost if each not in kept.variants)  # by a try that was cancelled
        there = [each.made_of for each in bench.weights]
        missing = [each for each in kept.weights if each.made_of not in there]
        bench.weights = (*bench.weights, *(bench.journal.carry(each, folder) for each in missing))
        try:
            while waiting:
                each = waiting[0]
                try:
                    variant = _again(bench, each, made, progress)
                except WorkbenchError as error:
                    if isinstance(error, Cancelled):
                        raise
                    failed.append(f"'{each.name}' could not be made again: {error}")
                    bench.lost = (*bench.lost, each)
                else:
                    name = bench.add(variant.under(each.name), each.seconds)
                    bench.choose(name, each.chosen)
                    if each.archived:
                        bench.archive(name)
                waiting.pop(0)
        finally:
            bench.lost = (*bench.lost, *waiting)
            _recall(bench, kept)
    count = len(kept.variants) - 1 - len(failed)
    return " ".join([f"Restored: {_many(count, 'variant')}.", *failed])


def _recall(bench: "Bench", kept: Record) -> None:
    """Show the rest of a record: what was ticked, said and measured, and how the panels stood."""
    with bench.lock:
        bench.choose(bench.base.name, kept.variants[0].chosen)
        bench.chat.recall(kept.turns)
        if kept.runs:
            bench.compare.recall(Comparison(list(kept.runs)))
        bench.recall(kept.knobs)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _steps(source: str, dtype: str, recipe: Sequence[dict[str, Any]]) -> str:
    return repr((source, dtype, list(recipe)))


def _again(bench: "Bench", each: KeptVariant, made: dict[str, Variant], progress: Progress) -> Variant:
    """A variant from the longest beginning of its recipe that is there already, or was exported."""
    steps, device = list(each.steps), bench.base.device.type
    dtype = each.dtype or str(bench.base.dtype).removeprefix("torch.")
    places = {len(found.recipe): bench.journal.folder / found.folder for found in bench.weights if found.serves(each)}
    exports = {length: place for length, place in places.items() if place.is_dir()}  # else it learns anew
    at = len(steps)
    while at and at not in exports and _steps(each.source, dtype, each.recipe[:at]) not in made:
        at -= 1
    key = _steps(each.source, dtype, each.recipe[:at])
    if key not in made:
        made[key] = load(exports.get(at, each.source), device=device, dtype=dtype, progress=progress)
    variant = made[key]
    for number, step in enumerate(steps[at:], at + 1):
        assert isinstance(step, Step)
        variant = variant.apply(step, bench.task, progress)
        made[_steps(each.source, dtype, each.recipe[:number])] = variant
    return variant
