"""Why a variant is slow and what would help, with a button a step; devices to compare with; what memory holds."""

from typing import Any

import ipywidgets as ipw

from widgets.parts import html, ui
from widgets.parts.figure import draw
from widgets.parts.message import Message
from widgets.parts.number import Number
from widgets.parts.style import close_tree
from widgets.tool import Host, Tool
from workbench.analysis.advice import Suggestion
from workbench.analysis.explain import Explanation, explain
from workbench.analysis.memory import memory
from workbench.analysis.roofline import Device
from workbench.core.drawn import HTML, drawn
from workbench.core.progress import Progress
from workbench.display import devices_html
from workbench.step import Step

# field of a device -> (what a row calls it, how many of it one shown unit is, the most that is taken)
FIELDS = {
    "bandwidth": ("GB/s", 1e9, 1e6),
    "flops": ("TFLOP/s", 1e12, 1e6),
    "call": ("µs a start", 1e-6, 1e5),
    "memory": ("GB", 1e9, 1e6),
}
EDITED = (
    "What each device does at best, from data sheets. Edit a number and the figure and the table follow; "
    "0 stands for not known, and then it is left out. A start is what beginning one operation costs."
)


class Explain(Tool):
    """Two buttons: what a token's time goes into, and what memory is held.

    Attributes:
        result: the last explanation, or None.
        rows: the editable numbers of every other device, by its name and field.
        choices: a button for every suggestion that names a step.
        widget: what is shown.
    """

    order = 6

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.result: Explanation | None = None
        self.rows: dict[str, dict[str, Number]] = {}
        self.choices: list[ipw.Button] = []
        self.button = ui.Button(
            description="Why is it slow", tooltip="What a token's time goes into, predicted and measured"
        )
        self.memory_button = ui.Button(description="What memory holds", tooltip="Weights, caches and what is free")
        self.message, self.said, self.table, self.held = Message(self.bench), ui.HTML(), ui.HTML(), ui.HTML()
        self.advice, self.place, self.devices = ui.VBox(), ui.VBox(), ui.VBox()
        head = ui.HBox([self.button, self.memory_button])
        head.add_class("wb-footer")
        self.advice.add_class("wb-advice")
        self.widget = ui.VBox(
            [head, self.message, self.held, self.said, self.advice, self.place, self.table, self.devices]
        )
        self.widget.add_class("wb-section")
        self.button.on_click(lambda _: self.explain())
        self.memory_button.on_click(lambda _: self.show_memory())

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step is about how a model is run."""
        return kind.family() == "runtime"

    @property
    def static(self) -> str:
        """What was found, for a page without a kernel."""
        return f"{self.said.value}{self.table.value}{self.held.value}"

    def explain(self) -> None:
        """Queue the measurement of the target."""
        with self.message.refusals():
            variant = self.panel.variant

            def work(progress: Progress) -> str:
                found = explain(variant, progress=progress)
                figure = found.figure(transparent=True)
                with self.bench.lock:
                    if not self.bench.closed:
                        self._show(found, figure)
                return f"Explained '{variant.name}'."

            self.message.submit(f"Explaining {variant.name}", work)

    def show_memory(self) -> None:
        """Queue a look at what is held."""

        def work(progress: Progress) -> str:
            said = str(drawn(memory(), HTML))
            with self.bench.lock:
                self.held.value = said
            return "Looked at what is held."

        with self.message.refusals():
            self.message.submit("Looking at the memory", work)

    def _show(self, found: Explanation, figure: Any) -> None:
        self.result = found
        self.said.value = html.explanation_of(found)
        self._offer(found)
        if self.rows:  # numbers that were typed stay
            self._recompute()
            return
        self._list_devices(found)
        self.table.value = devices_html(found)
        draw(self.place, figure)

    def _offer(self, found: Explanation) -> None:
        """A line for every suggestion, with a button where a step does it."""
        for each in self.advice.children:
            close_tree(each)
        self.choices, lines = [], []
        for suggestion in found.suggestions:
            line = [ui.HTML(html.help_line(str(suggestion)))]
            if suggestion.step is not None:
                line.insert(0, self._choice(suggestion))
            lines.append(ui.HBox(line))
            lines[-1].add_class("wb-footer")
        self.advice.children = lines

    def _choice(self, suggestion: Suggestion) -> ipw.Button:
        step = suggestion.step
        assert isinstance(step, Step)
        button = ui.Button(description=f"Set {step.label}", tooltip=f"Set the panel of its family to {step!r}")
        button.on_click(lambda _: self.bench.turn_to(step))
        self.choices.append(button)
        return button

    def _list_devices(self, found: Explanation) -> None:
        """A row of numbers a device, which open on a click."""
        lines = [ui.HTML(html.help_line(EDITED))]
        for device in found.devices:
            self.rows[device.name] = {
                name: Number(_shown(device, name), 0, most, description=unit, tooltip=f"{device.name}: {unit}")
                for name, (unit, _, most) in FIELDS.items()
            }
            for number in self.rows[device.name].values():
                number.observe(lambda _: self._recompute(), "value")
            lines.append(ui.HBox([ui.HTML(html.help_line(device.name)), *self.rows[device.name].values()]))
            lines[-1].add_class("wb-device")
        self.devices.children = [ui.Accordion([ui.VBox(lines)], titles=["Other numbers for these devices"])]

    def _recompute(self) -> None:
        """Follow an edited number; nothing is measured again."""
        with self.message.refusals(), self.bench.lock:
            if self.result is None:
                return
            self.result = self.result.on(self._edited(self.result.devices))
            self.table.value = devices_html(self.result)
            draw(self.place, self.result.figure(transparent=True))
            self.message.value = ""

    def _edited(self, devices: tuple[Device, ...]) -> list[Device]:
        return [_changed(device, self.rows[device.name]) for device in devices]


def _shown(device: Device, name: str) -> float:
    rates = device.flops.values()
    value = max(rates, default=0.0) if name == "flops" else getattr(device, name)
    if name == "flops" and (usual := device.flops.get("bfloat16") or device.flops.get("float32")):
        value = usual
    return float(f"{value / FIELDS[name][1]:.6g}")


def _changed(device: Device, row: dict[str, Number]) -> Device:
    """The device with the numbers that were edited, and its other figures."""
    wanted: dict[str, Any] = {}
    for name, number in row.items():
        if number.checked != _shown(device, name):
            value = number.checked * FIELDS[name][1]
            wanted[name] = {"float32": value, "bfloat16": value} if name == "flops" else value
    if "memory" in wanted:
        wanted["memory"] = round(wanted["memory"])
    if wanted.get("flops", {}).get("float32") == 0:
        wanted["flops"] = {}
    return device.model_copy(update=wanted | {"source": "edited"}) if wanted else device
