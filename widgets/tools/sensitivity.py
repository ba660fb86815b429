"""Which layers mind a step most, and leaving some of them out of it."""

from collections.abc import Collection
from typing import Any
from weakref import ref

import ipywidgets as ipw
import numpy as np
from transformers import PreTrainedModel

from widgets.parts import html, ui
from widgets.parts.figure import Plot, draw
from widgets.parts.message import Message
from widgets.parts.number import Number
from widgets.tool import Host, Tool
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.layers.sensitivity import Sensitivity, sensitivity
from workbench.layers.step import LayerStep
from workbench.models.blocks import decoder_blocks
from workbench.step import Step
from workbench.variant import Variant

FEW = 5  # layers excluded at once, unless told otherwise
MARK = {"symbol": "x", "size": 8, "color": "white", "line": {"color": "black", "width": 1}}


class Layers(Tool):
    """The sensitivity of every layer to the chosen method, as a heat map whose cells exclude a layer when clicked.

    Attributes:
        results: what was measured, by method.
        plots: their heat maps, by method; that of the chosen one is on screen.
        widget: what is shown.
    """

    order = 2

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.results: dict[type[Step], Sensitivity] = {}
        self.plots: dict[type[Step], Plot] = {}
        self._measured: dict[type[Step], ref[PreTrainedModel]] = {}
        self.button = ui.Button(
            description="Measure sensitivity", tooltip="How far the model moves if one layer alone is changed"
        )
        self.leave_out = ui.Button(
            description="Exclude the most sensitive", tooltip="Add them to the field Exclude, most sensitive first"
        )
        self.count = Number(FEW, 1, 10_000, whole=True, description="Layers", tooltip="How many to exclude")
        self.message, self.excluded, self.table = Message(self.bench), ui.HTML(), ui.HTML()
        self.place = ui.VBox()
        self._places: dict[type[Step], ipw.Box] = {}
        head = ui.HBox([self.button, ui.HTML(html.help_line("For every layer, what changing it alone would do."))])
        head.add_class("wb-footer")
        choose = ui.HBox([self.leave_out, self.count, self.excluded])
        choose.add_class("wb-footer")
        self.found = ui.VBox([self.place, choose, self.table])
        ui.show(self.found, False)
        self.widget = ui.VBox([head, self.message, self.found])
        self.widget.add_class("wb-section")
        self.button.on_click(lambda _: self.measure())
        self.leave_out.on_click(lambda _: self.exclude_most())

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step changes layers one by one, by a knob that can be varied."""
        return issubclass(kind, LayerStep) and bool(kind.strength)

    @property
    def result(self) -> Sensitivity | None:
        """What was measured for the chosen method on the chosen variant."""
        kind = self.panel.kind
        measured = self._measured.get(kind)
        if measured is None or measured() is not self.panel.variant.model:
            return None
        return self.results[kind]

    def measure(self) -> None:
        """Queue the measurement for what the panel is set to, without its exclusions."""
        with self.message.refusals():
            step, variant, task = self.panel.step, self.panel.variant, self.bench.task
            if task is None:
                raise InvalidInput(f"This bench has no task to read text from. {html.NO_TASK}")
            assert isinstance(step, LayerStep)
            whole = step.model_copy(update={"exclude": ""})
            label = f"Sensitivity of {variant.name} to {step.label}"
            done = f"Measured on '{variant.name}': it is bench.sensitivity. Click a cell to exclude its layer."

            def work(progress: Progress) -> None:
                self._draw(type(step), variant, sensitivity(variant, task, whole, progress=progress))

            self.message.submit(label, work, done, key=f"{label}\n{whole!r}")

    def follow(self, step: Step | None, variant: Variant | None) -> None:
        """Show what is known of the chosen method, its excluded layers marked."""
        found = self.result
        ui.show(self.found, found)
        for kind, place in self._places.items():
            ui.show(place, kind is self.panel.kind)
        if found is None or variant is None or not isinstance(step, LayerStep):
            return
        try:
            out = _excluded(step, variant, found)
        except WorkbenchError as error:
            self.excluded.value = html.help_line(str(error))
            return
        _mark(self.plots[type(step)], out)
        self.excluded.value = html.excluded(out, len(found.layers))
        self.table.value = html.sensitive(found, self._at(step))

    def _draw(self, kind: type[Step], variant: Variant, found: Sensitivity) -> None:
        figure = found.figure(transparent=True)
        figure.add_traces([_marks(heat) for heat in figure.data])
        figure.update_layout(dragmode=False)  # a click is a click, even if the mouse moves a little
        with self.bench.lock:
            if self.bench.closed:
                return
            self.results[kind] = self.bench.sensitivity = found
            self._measured[kind] = ref(variant.model)
            if kind not in self._places:
                self._places[kind] = ui.VBox()
                self.place.children = (*self.place.children, self._places[kind])
            self.plots[kind] = draw(self._places[kind], figure, self.toggle)
            self.follow(*self.panel.settings)

    @property
    def static(self) -> str:
        """What was measured, for a page without a kernel."""
        return self.table.value

    def toggle(self, layer: str) -> None:
        """Exclude a layer from the step, or no longer."""
        with self.bench.lock:
            kept = [each for each in self._typed if each != layer]
            if len(kept) < len(self._typed):
                self._type(kept)
                return
            step, variant = self.panel.step, self.panel.variant
            if self.result and isinstance(step, LayerStep) and layer in _excluded(step, variant, self.result):
                said = f"'{layer}' is excluded by a pattern: change the field Exclude to have it back."
                self.excluded.value = html.message(said, "error")
                return
            self._type([*kept, layer])

    def exclude_most(self) -> None:
        """Exclude as many layers as the control says, the most sensitive first."""
        with self.message.refusals(), self.bench.lock:
            step, found, count = self.panel.step, self.result, self.count.checked
            if found is None or not isinstance(step, LayerStep):
                return
            order = np.argsort(-found.kl[:, self._at(step)])[:count]
            self._type([*self._typed, *(found.layers[row] for row in order if found.layers[row] not in self._typed)])

    @property
    def _typed(self) -> list[str]:
        value = self.panel.form.controls["exclude"].value
        return [each.strip() for each in value.split(",") if each.strip()]

    def _type(self, items: list[str]) -> None:
        self.panel.form.controls["exclude"].value = ", ".join(items)

    def _at(self, step: LayerStep) -> int:
        """The measured strength that is nearest to the knob."""
        assert self.result is not None
        wanted = float(getattr(step, step.strength))
        return int(np.argmin([abs(each - wanted) for each in self.result.strengths]))


def _excluded(step: LayerStep, variant: Variant, found: Sensitivity) -> list[str]:
    """The measured layers that the step leaves as they are."""
    root = decoder_blocks(variant.model)[0]
    kept = {path.removeprefix(f"{root}.") for path in step.layers(variant)}
    return [layer for layer in found.layers if layer not in kept]


def _marks(heat: Any) -> Any:
    """Crosses on a heat map, none yet; clicks go through them to the cells."""
    import plotly.graph_objects as go

    axes = {"xaxis": heat.xaxis, "yaxis": heat.yaxis}
    return go.Scatter(x=[], y=[], mode="markers", marker=MARK, hoverinfo="skip", showlegend=False, **axes)


def _mark(plot: Plot, layers: Collection[str]) -> None:
    """Put a cross on every cell of these layers, in each of the heat maps that make up the first half of the traces."""
    figure = plot.figure
    half = len(figure.data) // 2
    heats, crosses = figure.data[:half], figure.data[half:]
    cells = [(y, x) for y, row in enumerate(heats[0].customdata) for x, name in enumerate(row) if name in layers]
    x, y = [heats[0].x[column] for _, column in cells], [heats[0].y[row] for row, _ in cells]
    if list(crosses[0].x) != x or list(crosses[0].y) != y:
        for each in crosses:
            each.x, each.y = x, y
        plot.show(figure)
