"""What a step did to the weights: every matrix at once, and one of them in detail."""

from math import isnan
from typing import Any

from widgets.parts import html, ui
from widgets.parts.figure import draw
from widgets.parts.message import Message
from widgets.tool import Host, Tool
from workbench.analysis.diff import VALUES, Diff, Matrix, diff
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.step import RequestStep, Step


class Changes(Tool):
    """A variant against the one it was made from.

    Attributes:
        result: the last comparison, or None.
        widget: what is shown.
    """

    order = 6

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.result: Diff | None = None
        self._pairs: dict[str, str] = {}
        self.button = ui.Button(description="What changed", tooltip="Compare every weight matrix with the one before")
        self.variant = ui.Dropdown(options=[], description="Variant", tooltip="The variant whose last step is shown")
        self.value = ui.ToggleButtons(options=VALUES, description="Show", tooltip="What the colours say")
        self.layer = ui.Dropdown(options=[], description="Layer", tooltip="The matrix shown in detail")
        self.message, self.hint, self.table = Message(self.bench), ui.HTML(), ui.HTML()
        self.map, self.histogram, self.closeup = ui.VBox(), ui.VBox(), ui.VBox()
        head = ui.HBox([self.button, self.variant, self.hint])
        head.add_class("wb-footer")
        self.found = ui.VBox([self.value, self.map, self.table, self.layer, self.histogram, self.closeup])
        ui.show(self.found, False)
        self.widget = ui.VBox([head, self.message, self.found])
        self.widget.add_class("wb-section")
        self.button.on_click(lambda _: self.compare())
        self.value.observe(lambda _: self._wanted(self._draw_map), "value")
        self.layer.observe(lambda _: self._wanted(self._draw_layer), "value")
        self.bench.watch(self._list)
        self._list()

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step changes weights, not requests or how they are run."""
        return not issubclass(kind, RequestStep) and kind.family() != "runtime"

    @property
    def static(self) -> str:
        """What was compared, for a page without a kernel."""
        return self.table.value

    def compare(self) -> None:
        """Queue the comparison of the chosen variant with the one before its last step."""
        with self.message.refusals():
            name = self.variant.value
            if name is None:
                raise InvalidInput("No variant was made here from another on the list: Apply makes one.")
            before, after = self.bench[self._pairs[name]], self.bench[name]
            label = f"What changed in {name}"
            done = f"'{name}' against '{before.name}': click a cell to see its weights below."

            def work(progress: Progress) -> None:
                found = diff(before, after, progress)
                most = sorted(found.matrices, key=_moved, reverse=True)
                with self.bench.lock:
                    self.result = found
                    self.layer.options = found.paths
                    self.layer.value = most[0].path
                    self.table.value = html.changed(most)
                    ui.show(self.found, True)
                self._draw_map()
                self._draw_layer()

            self.message.submit(label, work, done, key=f"{self.panel.family} {label}")

    def _wanted(self, draw_part: Any) -> None:
        if self.result:
            self.bench.compute((self, draw_part.__name__), draw_part)

    def _draw_map(self) -> None:
        if self.result is None:
            return
        figure = self.result.figure(transparent=True, value=self.value.value)
        figure.update_layout(dragmode=False)
        with self.bench.lock:
            if not self.bench.closed:
                draw(self.map, figure, self._choose)

    def _draw_layer(self) -> None:
        try:
            if self.result is None or self.layer.value is None:
                return
            path = self.layer.value
            parts = [self.result.histogram(path, transparent=True), self.result.closeup(path, transparent=True)]
        except WorkbenchError as error:
            self.message.value = html.message(str(error), "error")
            return
        with self.bench.lock:
            if not self.bench.closed and path == self.layer.value:
                for place, figure in zip((self.histogram, self.closeup), parts, strict=True):
                    draw(place, figure)

    def _choose(self, path: str) -> None:
        if path in self.layer.options:
            self.layer.value = path

    def _list(self) -> None:
        """Offer every variant that this family made last and whose parent is on the list, the newest chosen."""
        variants = self.bench.variants
        pairs = {}
        for name, each in variants.items():
            steps = each.recipe.steps
            if steps and steps[-1].family() == self.panel.family:
                alike = [
                    other
                    for other, it in variants.items()
                    if it.recipe.steps == steps[:-1] and it.source == each.source
                ]
                parent = next((other for other in alike if variants[other] is each.parent), next(iter(alike), None))
                if parent is not None:
                    pairs[name] = parent
        self.hint.value = "" if pairs else HINT
        ui.show(self.variant, pairs)
        if pairs != self._pairs:
            self._pairs = pairs
            self.variant.options = tuple(pairs)
            self.variant.value = next(reversed(pairs), None)


def _moved(matrix: Matrix) -> float:
    """How far a matrix moved, for finding the one that moved most."""
    return 0.0 if isnan(matrix.change) else matrix.change


HINT = html.help_line("Once a step was applied: every weight matrix before and after it.")
