"""What the settings would do, tried out anew after every change of a knob."""

from widgets.parts import html, ui
from widgets.tool import Host, Tool
from workbench.analysis.preview import PROMPT, Preview, preview
from workbench.answering.request import Request
from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.progress import Progress
from workbench.layers.step import LayerStep
from workbench.step import RequestStep, Step
from workbench.tasks.task import Task
from workbench.variant import Variant


class Live(Tool):
    """A switch, the prompt that is asked, and the last preview. Only the newest settings are tried.

    Attributes:
        result: the last preview, or None.
        widget: what is shown.
    """

    order = 1
    stands = "near"

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.result: Preview | None = None
        self._progress = Progress()
        self.switch = ui.Checkbox(
            description="Live preview", indent=False, tooltip="Try the settings out after every change of a knob"
        )
        task = self.bench.task
        self.prompt = ui.Textarea(
            value=task.test[0].prompt if isinstance(task, Task) else PROMPT,
            description="Ask",
            tooltip="What is asked before and after, with the instruction of the task if there is one",
            rows=2,
            continuous_update=False,
        )
        self.status, self.view = ui.HTML(), ui.HTML()
        head = ui.HBox([self.switch, self.status])
        head.add_class("wb-footer")
        self.widget = ui.VBox([head, self.prompt, self.view])
        self.widget.add_class("wb-section")
        self.switch.observe(lambda _: self._switched(), "value")
        self.prompt.observe(lambda _: self.follow(*panel.settings), "value")
        self._show()

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step changes what is said, has a knob that can be moved and is quick enough to follow it."""
        if issubclass(kind, RequestStep) or kind.family() == "runtime":
            return False
        return kind.instant or (issubclass(kind, LayerStep) and bool(kind.strength))

    @property
    def static(self) -> str:
        """The last preview, for a page without a kernel."""
        return self.view.value

    def follow(self, step: Step | None, variant: Variant | None) -> None:
        """Try the step when the worker is free, and give up what is being tried; None stands for refused settings."""
        self._progress.cancel()
        if not self.switch.value or variant is None or step is None or not self.fits(type(step)):
            self.status.value = HINT if self.switch.value else OFF
            return
        if step.needs_data and self.bench.task is None:
            self.status.value = NO_TASK
            return
        progress = self._progress = Progress(self._tell)
        name, typed = variant.name, self.prompt.value
        self.status.value = html.help_line("Waiting for the worker.")

        def work() -> None:
            try:
                progress.check()
                asked = Request.typed(typed, self.bench.task)
                found = preview(self.bench[name], step, self.bench.task, asked, progress)
                shown = html.preview(found, name, repr(step), getattr(self.bench.task, "name", ""))
                said = SEQUENTIAL if getattr(step, "runs_changed_blocks", False) else ""
            except Cancelled:
                return
            except WorkbenchError as error:
                found, shown, said = None, html.message(str(error), "error"), ""
            except Exception as error:
                found, said = None, ""
                shown = html.message(f"The preview failed ({type(error).__name__}): Apply says more.", "error")
            with self.bench.lock:
                if not self.bench.closed and not progress.cancelled:
                    self.result, self.view.value, self.status.value = found, shown, said
                    self._progress = Progress()  # a report that comes late has nothing to say any more

        self.bench.compute(self, work)

    def _switched(self) -> None:
        self._show()
        self.follow(*self.panel.settings)

    def _show(self) -> None:
        for each in (self.prompt, self.view):
            ui.show(each, self.switch.value)
        self.status.value = OFF

    def _tell(self, progress: Progress) -> None:
        with self.bench.lock:
            if not self.bench.closed and progress is self._progress and not progress.cancelled:
                self.status.value = html.help_line(f"{progress.label}: {progress.done} of {progress.total}.")


OFF = html.help_line("A short answer, divergence and perplexity, new after every change of a knob.")
NO_TASK = html.help_line(f"This method needs a task to calibrate on. {html.NO_TASK}")
HINT = html.help_line("These settings cannot be tried.")
SEQUENTIAL = html.help_line("Tried without 'sequential', which takes a pass of its own for every setting.")
