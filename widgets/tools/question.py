"""What a request step makes of a question: the prompt as it is read, answers before and after, the score."""

import time
from collections.abc import Callable
from typing import Any

from widgets.parts import html, transcript, ui
from widgets.parts.message import Message
from widgets.parts.number import Number
from widgets.tool import Host, Tool
from workbench.analysis.preview import PROMPT
from workbench.answering.request import Generation, Request
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.estimate import mean, median, paired_difference, paired_ratio
from workbench.core.progress import Progress
from workbench.measurement.latency import answer_interleaved
from workbench.measurement.scores import generate_answers, scored
from workbench.step import RequestStep, Step
from workbench.steps.context.shortening import Shortening
from workbench.tasks.task import Task
from workbench.variant import Variant

TRIED = 3  # examples answered side by side
NEW_TOKENS = 64  # of the answer to a typed question
TIMED = 6  # examples answered one at a time, for their times
TOGETHER = 1.0  # seconds within which changes of the settings are undone together
MOST_PAST = 100  # settings that can be gone back to


class Asked(Tool):
    """A question, what is made of it, and the buttons that try the settings on examples.

    Attributes:
        widget: what is shown.
        past: the settings there were, the newest last.
    """

    order = 4

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.past: list[Step] = []
        self.future: list[Step] = []
        self._now: Step | None = None
        self._asked: tuple[Step, str, str, str] | None = None  # with the task, as in the next two
        self._changed = 0.0
        self._moving = False
        self._tried: tuple[tuple[str, str], Step, list[Generation]] | None = None
        self._scored: tuple[tuple[str, str], Step, list[float]] | None = None
        task = self.bench.task
        self.question = ui.Textarea(
            value=task.test[0].prompt if isinstance(task, Task) else PROMPT,
            description="Ask",
            tooltip="What is asked, with the instruction of the task if there is one",
            rows=2,
            continuous_update=False,
        )
        self.undo = ui.Button(description="Undo", tooltip="Back to the settings before", disabled=True)
        self.redo = ui.Button(description="Redo", tooltip="Forward again", disabled=True)
        self.show = ui.Button(description="Show prompt", tooltip="The prompt that the model reads with these settings")
        self.answer = ui.Button(description="Answer", tooltip="The answer to the question, before and after")
        self.trial = ui.Button(
            description=f"Try on {TRIED} examples", tooltip="Answers before and after, and with the settings tried last"
        )
        self.score = ui.Button(
            description="Score",
            tooltip="Scores and times to the first token, before and after, on test examples",
        )
        self.count = Number(40, 2, 10_000, whole=True, description="Examples", tooltip="Test examples that are scored")
        self.message, self.prompt, self.answers = Message(self.bench), ui.HTML(), ui.HTML()
        buttons = ui.HBox([self.undo, self.redo, self.show, self.answer, self.trial, self.score, self.count])
        buttons.add_class("wb-footer")
        self.widget = ui.VBox([self.question, buttons, self.message, self.prompt, self.answers])
        self.widget.add_class("wb-section")
        self.undo.on_click(lambda _: self._move(self.past, self.future))
        self.redo.on_click(lambda _: self._move(self.future, self.past))
        self.show.on_click(lambda _: self._submit("Prompt", self._show, self._request))
        self.answer.on_click(lambda _: self._submit("Answer", self._answer, self._request))
        self.trial.on_click(lambda _: self._submit("Trial", self._try, lambda: TRIED))
        self.score.on_click(lambda _: self._submit("Score", self._score, lambda: self.count.checked))
        self.question.observe(lambda _: self.follow(*panel.settings), "value")

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step works on requests."""
        return issubclass(kind, RequestStep)

    @property
    def static(self) -> str:
        """What was shown and said last, for a page without a kernel."""
        return self.message.value + self.prompt.value + self.answers.value

    def follow(self, step: Step | None, variant: Variant | None) -> None:
        """Remember the settings, and show the prompt at once where that takes no time."""
        if self._moving or step is None or variant is None or not self.fits(type(step)):
            return
        if self._now is not None and step != self._now:
            self._remember(self._now)
        self._now = step
        self._arrows()
        task = self.bench.task
        asked = (step, variant.name, self.question.value, task.fingerprint if task is not None else "")
        if asked == self._asked:  # the list of variants has changed, nothing else
            return
        self._asked = asked
        if step.instant and all(isinstance(each, RequestStep) and each.instant for each in variant.stages):
            self.bench.compute(self, lambda: self._show_live(variant, step))
        else:
            self.prompt.value = html.help_line("Show prompt renders it with these settings.")

    def _remember(self, step: Step) -> None:
        """Keep settings to go back to; a dragged slider, or many knobs set at once, is one change."""
        now = time.monotonic()
        if now - self._changed >= TOGETHER:
            self.past = [*self.past, step][-MOST_PAST:]
        self._changed = now
        self.future.clear()

    def _move(self, source: list[Step], target: list[Step]) -> None:
        self._changed = 0.0
        if source and self._now is not None:
            target.append(self._now)
            self._now = wanted = source.pop()
            self._moving = True  # one knob after another changes: none of that is a setting of its own
            try:
                self.panel.set(wanted)
            finally:
                self._moving = False
            self.follow(*self.panel.settings)

    def _arrows(self) -> None:
        self.undo.disabled, self.redo.disabled = not self.past, not self.future

    def _submit(self, label: str, look: Callable[..., str], read: Callable[[], Any]) -> None:
        """Queue a look at the settings and at what is read now: the question, or a number of examples."""
        with self.message.refusals():
            step, variant, given = self.panel.step, self.panel.variant, read()
            title = f"{label}: {step.label} on {variant.name}"
            self.message.submit(
                title, lambda progress: look(variant, step, given, progress), key=f"{title}{step!r}{given}"
            )

    def _request(self) -> Request:
        """The typed question, asked as the task asks."""
        return Request.typed(self.question.value, self.bench.task)

    def _show(self, variant: Variant, step: Step, asked: Request, progress: Progress) -> str:
        after = variant.apply(step, self.bench.task, progress)
        before, request = variant.rewritten(asked), after.rewritten(asked)
        shown = transcript.prompt(after.tokenizer, after.tokens(request), len(variant.tokens(before)))
        shown += transcript.passages(request)
        if isinstance(step, Shortening):
            shown += transcript.removed(before.context, request.context)
        with self.bench.lock:
            if not self.bench.closed:
                self.prompt.value = shown
        return " ".join(each for each in after.notes if each not in variant.notes)

    def _show_live(self, variant: Variant, step: Step) -> None:
        try:
            self._show(variant, step, self._request(), Progress())
        except WorkbenchError as error:
            self.prompt.value = html.message(str(error), "error")

    def _answer(self, variant: Variant, step: Step, asked: Request, progress: Progress) -> str:
        after = variant.apply(step, self.bench.task, progress)
        said = []
        for each in (variant, after):
            for piece in each.stream(asked, max_new_tokens=NEW_TOKENS):
                progress.check()
                said += [piece.answer] if piece.answer else []
        with self.bench.lock:
            self.answers.value = transcript.answers(asked.query, {"Before": said[0], "With these settings": said[1]})
        return ""

    def _try(self, variant: Variant, step: Step, count: int, progress: Progress) -> str:
        task = self._task()
        examples = (task.calibration or task.test)[:count]
        after = variant.apply(step, task, progress)
        said = {"Before": generate_answers(variant, task, examples, progress)}
        on = (variant.name, task.fingerprint)
        if self._tried and self._tried[0] == on and self._tried[1] != step:
            said["Settings tried last"] = self._tried[2]
        said["With these settings"] = generate_answers(after, task, examples, progress)
        self._tried = on, step, said["With these settings"]
        with self.bench.lock:
            self.answers.value = transcript.side_by_side(task, examples, said)
        return ""

    def _score(self, variant: Variant, step: Step, count: int, progress: Progress) -> str:
        task = self._task()
        after = variant.apply(step, task, progress)
        before, now = (scored(each, task, count, progress).scores for each in (variant, after))
        said = [
            f"Score {mean(now, 'score').value:.3f}, {mean(before, 'score').value:.3f} before: {_gain(now, before)}, on "
            f"{len(now)} test examples."
        ]
        on = (variant.name, task.fingerprint)
        if self._scored and self._scored[0] == on and self._scored[1] != step:
            last = self._scored[2]
            said += [f"Against the settings scored last: {_gain(now, last)}."] if len(last) == len(now) else []
        self._scored = on, step, now
        answers = answer_interleaved([variant, after], task, TIMED, progress)
        said += [
            _times("First token", [[each.ttft for each in found] for found in answers]),
            _times("Whole answer", [[each.times[-1] for each in found] for found in answers]),
        ]
        return " ".join(said)

    def _task(self) -> Task:
        if not isinstance(self.bench.task, Task):
            raise InvalidInput(f"There are no examples to try. {html.NO_TASK}")
        return self.bench.task


def _gain(now: list[float], before: list[float]) -> str:
    gain = paired_difference(now, before, "score")
    unsure = "" if gain.low > 0 or gain.high < 0 else ", no measurable difference"
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]{unsure}"


def _times(what: str, seconds: list[list[float]]) -> str:
    before, now = (1000 * median(each, "s").value for each in seconds)
    ratio = paired_ratio(seconds[1], seconds[0])
    return f"{what} after {now:.0f} ms, {before:.0f} before: {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]."
