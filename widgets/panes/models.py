"""Another model, loaded in the bench: its size and whether it fits before, what it can be compared with after."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from widgets.parts import html, ui
from widgets.parts.code import Snippet, variable
from widgets.parts.message import Message
from workbench.analysis.memory import fits
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.measurement.comparable import limits
from workbench.variant import Variant, load

if TYPE_CHECKING:
    from widgets.session import Session

MOST_FOUND = 50  # models near the notebook that are offered
OWN = ""  # where `load` chooses by itself


class Models:
    """The upper half of the Load tab.

    Attributes:
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.source = ui.Combobox(
            description="File or hub id",
            placeholder="A .gguf file, a folder, or a hub id such as Qwen/Qwen3-0.6B",
            options=near(),
            ensure_option=False,
            continuous_update=False,
            tooltip="What to load",
        )
        self.device = ui.Dropdown(
            options=[("fastest", OWN), ("cpu", "cpu"), ("cuda", "cuda")],
            description="Runs on",
            tooltip="Where the model shall run",
        )
        self.dtype = ui.Dropdown(
            options=[("usual there", OWN), *((each, each) for each in ("float32", "bfloat16", "float16"))],
            description="Computes in",
            tooltip="The type of its numbers",
        )
        self.button = ui.Button(
            description="Load", button_style="primary", tooltip="Load it as a further variant", disabled=True
        )
        self.size, self.code, self.message = ui.HTML(), Snippet(), Message(bench)
        how = ui.HBox([self.device, self.dtype])
        how.add_class("wb-grid")
        footer = ui.HBox([self.button, self.size])
        footer.add_class("wb-footer")
        self.widget = ui.VBox([ui.HTML("<h3>Another model</h3>"), self.source, how, footer, self.message, self.code])
        self.widget.add_class("wb-part")
        for knob in (self.source, self.device, self.dtype):
            knob.observe(lambda _: self.look(), "value")
        self.button.on_click(lambda _: self.run())
        self.look()

    @property
    def settings(self) -> dict[str, str]:
        """What is set, as `load` takes it."""
        chosen = {"device": self.device.value, "dtype": self.dtype.value}
        return {name: value for name, value in chosen.items() if value != OWN}

    def look(self) -> None:
        """Say how large the model is, and whether it fits, from its headers; nothing is loaded for that."""
        source, settings = self.source.value.strip(), self.settings
        self.button.disabled = not source
        self.code.value = load_call(source or "...", settings)
        self.size.value = html.help_line("Its size is looked up when the worker is free." if source else "")

        def work() -> None:
            try:
                said = html.help_line(str(fits(source, **settings)))
            except InvalidInput as error:
                said = html.message(str(error), "error")
            except WorkbenchError:
                said = html.help_line("It is not on this machine: its size is known once it has come from the hub.")
            with self.bench.lock:
                if not self.bench.closed and source == self.source.value.strip():
                    self.size.value = said

        if source:
            self.bench.compute(self, work)

    def run(self) -> None:
        """Queue the loading."""
        source, settings = self.source.value.strip(), self.settings
        with self.message.refusals():
            if not source:
                raise InvalidInput("No model is named: type a hub id, a folder or a .gguf file.")

            def work(progress: Progress) -> str:
                made = load(source, progress=progress, **settings)
                name = self.bench.add(made)
                self.bench.go_on(name)
                return self.loaded(name, made)

            self.message.submit(f"Load {Path(source).name[:60]}", work, key="load")

    def loaded(self, name: str, made: Variant) -> str:
        """What was loaded, and what it can be compared with."""
        said = [f"Loaded '{name}': it is ticked, and what the panels are applied to.", *made.notes]
        if self.bench.task is not None:
            said += limits([self.bench.base, made.under(name)], self.bench.task)
        return " ".join(said)


def near(folder: Path = Path()) -> tuple[str, ...]:
    """Models in a folder and in the folders in it: .gguf files, and folders with a config.json."""
    files = (
        each for pattern in ("*.gguf", "*/*.gguf", "*/config.json", "*/*/config.json") for each in folder.glob(pattern)
    )
    found = (each.parent if each.name == "config.json" else each for each in files)
    return tuple(sorted(str(each) for each in islice(found, MOST_FOUND)))


def load_call(source: str, settings: dict[str, str]) -> str:
    """The same as code."""
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    name = variable(Path(source).name.removesuffix(".gguf") if source != "..." else "other")
    return f"{name} = wb.load({source!r}{given})\nbench.add({name})"
