"""A training while it runs: its curves, what the model says by now, and the buttons to hold or end it."""

from typing import Any

from widgets.parts import html, ui
from widgets.parts.figure import draw
from widgets.tool import Host, Tool
from workbench.core.jobs import Job
from workbench.display import curve_data, curve_figure
from workbench.step import Step
from workbench.training.curve import Curve
from workbench.training.step import TrainingStep


class Training(Tool):
    """Follows the training that its panel has started.

    Attributes:
        job: the one followed, or None.
        widget: what is shown.
    """

    order = 0

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.job: Job | None = None
        self._plot: Any = None
        self.pause = ui.Button(description="Pause", tooltip="Hold the training after this step, or go on")
        self.finish = ui.Button(
            description="Finish now", tooltip="End the training and keep what it has learned so far"
        )
        self.cancel = ui.Button(description="Cancel", tooltip="End the training and keep nothing")
        self.status, self.place, self.answers = ui.HTML(), ui.VBox(), ui.HTML()
        head = ui.HBox([self.pause, self.finish, self.cancel, self.status])
        head.add_class("wb-footer")
        self.shown = ui.VBox([head, self.place, self.answers])
        ui.show(self.shown, False)
        self.shown.add_class("wb-section")
        self.widget = ui.VBox([self.shown])
        self.pause.on_click(lambda _: self._hold())
        self.finish.on_click(lambda _: self.job and self.job.progress.stop())
        self.cancel.on_click(lambda _: self.job and self.job.cancel())

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step trains."""
        return issubclass(kind, TrainingStep)

    @property
    def static(self) -> str:
        """The last status, for a page without a kernel."""
        return self.status.value + self.answers.value if self.job else ""

    def running(self, job: Job) -> None:
        """Show how a job of the panel is going; called with the bench's lock held, at most five times a second."""
        curve = job.progress.live
        if not isinstance(curve, Curve) or not curve.evaluations:
            return
        if job is not self.job:
            self.job, self._plot = job, draw(self.place, curve_figure(curve, transparent=True))
            ui.show(self.shown, True)
        for button in (self.pause, self.finish, self.cancel):
            button.disabled = job.ended
        self.pause.description = "Resume" if job.progress.paused else "Pause"
        self.status.value = html.training(curve, job)
        self.answers.value = html.said(curve.evaluations[-1])
        for trace, data in zip(self._plot.figure.data, curve_data(curve), strict=True):
            trace.update(data)
        self._plot.show(self._plot.figure)

    def _hold(self) -> None:
        if self.job:
            self.job.progress.pause(not self.job.progress.paused)
            self.pause.description = "Resume" if self.job.progress.paused else "Pause"
