"""Data of one's own, chosen in the bench: a file dropped or named, its columns looked at, its splits shown."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from widgets.parts import html, ui
from widgets.parts.code import Snippet
from widgets.parts.drop import Drop
from widgets.parts.message import Message
from widgets.parts.number import Number
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.files import home, is_kind
from workbench.core.progress import Progress
from workbench.tasks.files import READERS, check_kind, kind_of
from workbench.tasks.glance import USUAL, Glance, glance
from workbench.tasks.scoring import SCORERS
from workbench.tasks.sources import read_task, read_text
from workbench.tasks.task import SPLITS, Task, Text

if TYPE_CHECKING:
    from widgets.session import Session

PROSE = (".txt", ".md")
NONE = ""  # no column
OURS = tuple(USUAL)
MOST_FOUND = 50  # files near the notebook that are offered
LABELS = {"prompt": "Question", "answer": "Right answer"}
HELP = {
    "prompt": "What is asked",
    "answer": "The right answer",
    "choices": "The answers to choose from, if there are any",
    "context": "A text that goes with the question, if there is one",
    "document": "The document that answers it, if it is known",
}


class Data:
    """The lower half of the Load tab.

    Attributes:
        seen: what the first rows of the chosen file show, or None.
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.seen: Glance | None = None
        self._read: tuple[Any, Task | Text] | None = None  # the newest, by the code that reads it and the file's time
        self._setting = False
        self.drop = Drop(check, self._arrived, ",".join([*READERS, ".gz", *PROSE]))
        self.source = ui.Combobox(
            description="File or hub id",
            placeholder="A .csv, .jsonl, .parquet, .txt or .md file, a folder, or a hub id",
            options=near(),
            ensure_option=False,
            continuous_update=False,
            tooltip="What to measure on",
        )
        self.columns = {ours: _column(ours) for ours in OURS}
        self.scorer = ui.Dropdown(
            options=sorted(SCORERS), value="exact", description="Scored by", tooltip="How an answer is compared"
        )
        self.instruction = ui.Text(
            description="Instruction", continuous_update=False, tooltip="Put before every question; may stay empty"
        )
        self.window = Number(128, 2, 4096, whole=True, description="Window", tooltip="Tokens in a window")
        self.rows, self.splits, self.code, self.message = ui.HTML(), ui.HTML(), Snippet(), Message(bench)
        self.button = ui.Button(
            description="Use",
            button_style="primary",
            tooltip="Calibrate and measure on this from now on",
            disabled=True,
        )
        self.mapped = ui.HBox([*self.columns.values(), self.scorer, self.instruction])
        self.mapped.add_class("wb-grid")
        footer = ui.HBox([self.button, self.splits])
        footer.add_class("wb-footer")
        parts = [self.drop, self.source, self.rows, self.mapped, self.window, footer, self.message, self.code]
        self.widget = ui.VBox([ui.HTML("<h3>Your data</h3>"), *parts])
        self.widget.add_class("wb-part")
        self._show_knobs()
        self.source.observe(lambda _: self.look(), "value")
        for knob in (*self.columns.values(), self.scorer, self.instruction, self.window):
            knob.observe(lambda _: self.follow(), "value")
        self.button.on_click(lambda _: self.run())

    def look(self) -> None:
        """Look at the first rows of what is named, and guess which column is what."""
        source, self.seen, self.rows.value = self.source.value.strip(), None, ""
        if kind_of(home(source)) and is_kind(home(source), Path.is_file):
            with self.message.refusals():
                self.message.value = ""
                self.seen = glance(source)
                self.rows.value = table(self.seen)
        options = [("(none)", NONE), *((each, each) for each in (self.seen.columns if self.seen else ()))]
        self._setting = True  # one after another: none of that is a choice
        for ours, knob in self.columns.items():
            knob.options = options
            knob.value = self.seen.guess.get(ours, NONE) if self.seen else NONE
        self._setting = False
        self._show_knobs()
        self.follow()

    def follow(self) -> None:
        """Say what the data would be, with its splits, and the same as code."""
        if self._setting:
            return
        source = self.source.value.strip()
        self.button.disabled = not source
        self.splits.value = html.help_line("It is read when the worker is free." if source else "")
        try:
            code, read = self._code, self._reader()
        except WorkbenchError as error:  # a number out of range
            self.splits.value, self.code.value = html.message(str(error), "error"), ""
            return
        self.code.value = f"{code}\nbench.use(task)" if source else ""

        def work() -> None:
            try:
                key, found = (code, changed(source)), read()
                self._read, said = (key, found), html.help_line(split(found))
            except WorkbenchError as error:
                said = html.message(str(error), "error")
            with self.bench.lock:
                if not self.bench.closed and code == self._code:
                    self.splits.value = said

        if source and is_kind(home(source), Path.exists):
            self.bench.compute(self, work)
        elif source:
            self.splits.value = html.help_line("It is not on this machine: Use asks the hub for it.")

    def run(self) -> None:
        """Queue the reading, if that was not done, and use it."""
        source = self.source.value.strip()
        with self.message.refusals():
            if not source:
                raise InvalidInput("No data is named: drop a file, or type a path.")
            code, read = self._code, self._reader()

            def work(progress: Progress) -> str:
                known = self._read and self._read[0] == (code, changed(source))
                task, self._read = self._read[1] if known else read(), None  # a folder's files may change unseen
                self.bench.use(task)
                return f"From now on '{task.name}' is what steps learn from and comparisons measure."

            self.message.submit("Read the data", work, key="data")

    @property
    def prose(self) -> bool:
        """Whether it is running text, scored by perplexity."""
        path = home(self.source.value.strip())
        if is_kind(path, Path.is_dir):
            inside = list(path.iterdir())
            return not any(map(kind_of, inside)) and any(each.suffix.lower() in PROSE for each in inside)
        return path.suffix.lower() in PROSE

    @property
    def settings(self) -> dict[str, Any]:
        """What is set, as `read_task` or `read_text` takes it."""
        if self.prose:
            return {"window": self.window.checked}
        chosen = {ours: knob.value for ours, knob in self.columns.items() if knob.value != NONE}
        given = {
            "columns": {ours: theirs for ours, theirs in chosen.items() if ours != theirs},
            "scorer": self.scorer.value if self.seen else None,
            "instruction": self.instruction.value if self.seen else "",
        }
        return {name: value for name, value in given.items() if value and value != "exact"}

    @property
    def _code(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"task = wb.{'read_text' if self.prose else 'read_task'}({self.source.value.strip()!r}{given})"

    def _reader(self) -> Callable[[], Task | Text]:
        source, settings, prose = self.source.value.strip(), self.settings, self.prose
        return lambda: read_text(source, **settings) if prose else read_task(source, **settings)

    def _arrived(self, path: Path) -> None:
        self.source.value = str(path)

    def _show_knobs(self) -> None:
        plain = self.seen is not None and not self.seen.shape
        for knob in self.columns.values():
            ui.show(knob, plain)
        for knob in (self.scorer, self.instruction):
            ui.show(knob, self.seen)
        ui.show(self.window, self.prose)


def check(path: Path) -> None:
    """Refuse a file by its name, if it cannot be read as data."""
    if path.suffix.lower() not in PROSE:
        check_kind(path)


def changed(source: str) -> tuple[int, int] | None:
    """When a file was written last, and its size; None for what is not here."""
    try:
        found = home(source).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def split(found: Task | Text) -> str:
    """How data is divided, in a sentence."""
    if isinstance(found, Text):
        return f"{found.calibration} windows of {found.window} tokens calibrate, {found.test} are scored by perplexity."
    counts = {name: len(getattr(found, name)) for name in SPLITS}
    said = f"{counts['train']} examples to learn from, {counts['calibration']} to calibrate, {counts['test']} to test"
    return " ".join([f"{said}; scored by {found.scorer}.", *(f"{each[0].upper()}{each[1:]}." for each in found.notes)])


def table(seen: Glance) -> str:
    """The first rows of a file."""
    rows = [[str(row.get(name, ""))[:200] for name in seen.columns] for row in seen.rows]
    said = f" They are conversations, as {seen.shape} writes them: nothing needs to be mapped." if seen.shape else ""
    return html.help_line(f"The first {len(rows)} rows.{said}") + html.grid(seen.columns, rows, "The first rows")


def near(folder: Path = Path()) -> tuple[str, ...]:
    """Files of data in a folder and in the folders in it, and folders that hold a test split."""
    files = (each for pattern in ("*", "*/*") for each in folder.glob(pattern) if not each.name.startswith("."))
    found = (each for each in files if each.is_file() and (kind_of(each) not in ("", ".json") or each.suffix in PROSE))
    places = (each.parent if each.stem in SPLITS else each for each in islice(found, MOST_FOUND))
    return tuple(sorted({str(each) for each in places}))


def _column(ours: str) -> ipw.Dropdown:
    return ui.Dropdown(options=[("(none)", NONE)], description=LABELS.get(ours, html.words(ours)), tooltip=HELP[ours])
