"""Which blocks a step would leave out, and by how little they matter."""

from typing import Any

from widgets.parts import html, ui
from widgets.parts.figure import draw
from widgets.parts.message import Message
from widgets.tool import Host, Tool
from workbench.core.progress import Progress
from workbench.display import ranking_figure
from workbench.step import Step
from workbench.variant import Variant


class Blocks(Tool):
    """The influence of every block in a chart, those that the step leaves out marked.

    Attributes:
        ranking: the last one, as a table; or None.
        widget: what is shown.
    """

    order = 3

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.ranking: Any = None
        self._ranked = ""
        self.button = ui.Button(description="Rank blocks", tooltip="How much each block changes what flows through it")
        self.message, self.table, self.place = Message(self.bench), ui.HTML(), ui.VBox()
        head = ui.HBox([self.button, ui.HTML(html.help_line("How much each block changes its input, and which go."))])
        head.add_class("wb-footer")
        self.widget = ui.VBox([head, self.message, self.place, self.table])
        self.widget.add_class("wb-section")
        self.button.on_click(lambda _: self.rank())

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step ranks blocks."""
        return hasattr(kind, "ranking")

    @property
    def static(self) -> str:
        """The ranking, for a page without a kernel."""
        return self.table.value

    def rank(self) -> None:
        """Queue the ranking of the target's blocks."""
        with self.message.refusals():
            step, variant = self.panel.step, self.panel.variant
            self.message.submit(
                f"Ranking the blocks of {variant.name}",
                lambda progress: self._rank(step, variant, progress),
                f"Ranked the blocks of '{variant.name}'.",
            )

    def follow(self, step: Step | None, variant: Variant | None) -> None:
        """Mark other blocks when the knobs say so; the calibration pass was made by then."""
        if variant is not None and self.fits(type(step)) and self._ranked == variant.name:
            self.bench.compute(self, lambda: self._rank(step, variant, Progress()))

    def _rank(self, step: Any, variant: Variant, progress: Progress) -> None:
        found = step.ranking(variant, self.bench.task, progress)
        figure = ranking_figure(list(found.influence), list(found.dropped), transparent=True)
        with self.bench.lock:
            if self.bench.closed:
                return
            self.ranking, self._ranked = found, variant.name
            draw(self.place, figure)
            rows = [(each.block, f"{each.influence:.4f}", "yes" if each.dropped else "") for each in found.itertuples()]
            self.table.value = html.folded_table("As a table", ("Block", "Influence", "Left out"), rows)
