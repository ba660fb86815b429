"""Measure the chosen variants side by side, and watch the numbers settle."""

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from widgets.panes.guess import Guess
from widgets.parts import html, ui
from widgets.parts.figure import Plot, draw, empty
from widgets.parts.message import Message
from widgets.parts.number import Number
from widgets.parts.style import close_tree
from workbench.analysis.diff import diff
from workbench.core import units
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress, Throttle
from workbench.display import comparison_figure
from workbench.display.style import symbol
from workbench.measurement.comparable import limits
from workbench.measurement.comparison import NEW_TOKENS, ROUNDS, Comparison, compare
from workbench.measurement.latency import Timing, requests, time_request
from workbench.measurement.runs import RunStore
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

if TYPE_CHECKING:
    from widgets.session import Session

FEW_EXAMPLES = 8
TRIAL_TOKENS = 4


class Compare:
    """The comparison pane.

    Attributes:
        plot: the figure on screen, once something was measured.
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.plot: Plot | None = None
        self.changes: Plot | None = None
        self._trials: WeakKeyDictionary[Variant, tuple[Timing, int]] = WeakKeyDictionary()
        self._tried_on = bench.task
        self._newest: Comparison | None = None
        self._show_newest = Throttle(self._draw_newest)
        most = _examples(bench.task) if bench.task else 1
        self.examples = _count("Examples", min(most, FEW_EXAMPLES), 1, most, "Test examples that are scored")
        self.rounds = _count("Rounds", ROUNDS, 1, 50, "Timed requests of every variant")
        self.tokens = _count("New tokens", NEW_TOKENS, 2, 128, "Length of a timed answer")
        self.button = ui.Button(description="Compare", button_style="primary", tooltip="Measure the chosen variants")
        self.diff = ui.Button(
            description="What changed", tooltip="Heat map of how far each weight matrix is from the first variant's"
        )
        self.estimate, self.who, self.message, self.report = ui.HTML(), ui.HTML(), Message(bench), ui.HTML()
        self.place, self.changes_place = ui.VBox(), ui.VBox()
        self.presenting = False
        self.guess = Guess(bench, self._reveal)
        self.results = ui.VBox([self.place, self.report])
        knobs = ui.HBox([self.examples, self.rounds, self.tokens])
        knobs.add_class("wb-grid")
        footer = ui.HBox([self.button, self.diff, self.estimate])
        footer.add_class("wb-footer")
        self.widget = ui.VBox(
            [self.who, knobs, footer, self.message, self.guess.widget, self.results, self.changes_place]
        )
        self.widget.add_class("wb-panel")
        for knob in (self.examples, self.rounds, self.tokens):
            knob.observe(lambda _: self.show_estimate(), "value")
        self.button.on_click(lambda _: self.run())
        self.diff.on_click(lambda _: self.show_changes())
        self.visible = False
        self.present(False)
        bench.watch(self._show_chosen)
        self._show_chosen()

    def present(self, presenting: bool) -> None:
        """Take a guess before results are shown, or show them at once."""
        self.presenting = presenting
        if not presenting:
            self.guess.taken = None  # or it would be marked in what is measured from now on
        ui.show(self.guess.widget, presenting)
        self._hide(presenting)

    def _hide(self, hidden: bool) -> None:
        """Keep the results from the screen until a guess was taken, where there is something to guess."""
        hidden = hidden and len(self.bench.chosen) > 1
        ui.show(self.results, not hidden)
        if hidden:
            self.guess.ask(self.bench.chosen)

    def _reveal(self) -> None:
        with self.bench.lock:
            self._hide(False)
            self._draw_newest()

    def run(self) -> None:
        """Queue a comparison of the chosen variants; the first is the baseline."""
        names = self.bench.chosen
        with self.message.refusals():
            task, settings = self._task(), self._settings()
            if not names:
                raise InvalidInput("No variant is chosen: tick at least two in the list.")
            variants = [self.bench[name] for name in names]

            def work(progress: Progress) -> str:
                self._newest = self.bench.comparison
                try:
                    shown = {"progress": progress, "on_update": self._update}
                    self.bench.measured(compare(variants, task, **settings, **shown, store=False))
                finally:  # one that was cancelled leaves the last whole one on screen, or itself where there is none
                    with self.bench.lock:
                        if self.bench.comparison is not None:
                            self._newest = self.bench.comparison
                        elif self._newest is not None:
                            self._newest = Comparison(self._newest.runs, f"{self._newest.partial}, cancelled or failed")
                        self._show_newest(force=True)
                return _keep(self.bench.comparison)

            with self.bench.lock:  # what is under way is not hidden by a click that is refused
                self.message.submit(f"Compare {html.named(names)}", work, key="compare")
                self._hide(self.presenting)

    def recall(self, comparison: Comparison) -> None:
        """Show one that was measured before."""
        with self.bench.lock:
            self.bench.measured(comparison)
            self._newest = comparison
            self._show_newest(force=True)

    def show_changes(self) -> None:
        """Queue the heat map of the first chosen variant against the last."""
        names = self.bench.chosen
        with self.message.refusals():
            if len(names) < 2:
                raise InvalidInput("Tick two variants: the heat map shows how far the last is from the first.")
            before, after = self.bench[names[0]], self.bench[names[-1]]
            if not (isinstance(before, Variant) and isinstance(after, Variant)):
                raise InvalidInput("An endpoint's weights are elsewhere: tick a variant first and last in the list.")

            def work(progress: Progress) -> None:
                figure = diff(before, after, progress).figure(transparent=True)
                with self.bench.lock:
                    self.changes = draw(self.changes_place, figure)

            done = f"Below: what changed from '{names[0]}' to '{names[-1]}'."
            self.message.submit(f"What changed in {names[-1]}", work, done, key="diff")

    def show_estimate(self) -> None:
        """Say how long it would take, from one short timed answer of every chosen variant."""
        if not self.visible or self.bench.task is None:
            return
        self.bench.compute(self, self._estimate)

    def _settings(self) -> dict[str, int]:
        """How much is measured; refused if a number is out of range."""
        knobs = {"examples": self.examples, "rounds": self.rounds, "new_tokens": self.tokens}
        return {name: knob.checked for name, knob in knobs.items()}

    def _estimate(self) -> None:
        settings = self._settings()
        variants = [each for name in self.bench.chosen if isinstance(each := self.bench[name], Variant)]
        for variant in variants:
            if variant not in self._trials:
                prompt = requests(variant, self._task(), 1)[0]
                time_request(variant, prompt, 2)
                self._trials[variant] = (time_request(variant, prompt, TRIAL_TOKENS), len(variant.encode(prompt)))
        seconds = sum(self._seconds(*self._trials[variant], **settings) for variant in variants)
        with self.bench.lock:
            if variants and not self.bench.closed:
                self.estimate.value = html.help_line(
                    f"About {units.duration(seconds)}, judging by one short answer of each."
                )

    def _seconds(self, trial: Timing, prompt_tokens: int, examples: int, rounds: int, new_tokens: int) -> float:
        """Expected time of one variant's part: timed rounds, scored text and, for a task, generated answers."""
        task, each = self._task(), sum(trial.inter_token) / len(trial.inter_token)
        answer = trial.ttft + (new_tokens - 1) * each
        window = task.window if isinstance(task, Text) else prompt_tokens + task.max_new_tokens // 2
        scored = examples * window * trial.ttft / prompt_tokens
        written = examples * task.max_new_tokens * each / 4 if isinstance(task, Task) else 0.0
        return (rounds + 2) * answer + scored + written

    def _task(self) -> Task | Text:
        if self.bench.task is None:
            raise InvalidInput(f"This bench has no task to compare on. {html.NO_TASK}")
        return self.bench.task

    def _update(self, comparison: Comparison) -> None:
        self._newest = comparison
        self._show_newest(late=False)  # drawing must not meet a request that is timed

    def _draw_newest(self) -> None:
        with self.bench.lock:
            comparison = self._newest
            if self.bench.closed:
                return
            if comparison is None:
                empty(self.place)
                self.plot, self.report.value = None, ""
                return
            colours = [self.bench.colour(run.variant) for run in comparison.runs]
            symbols = [symbol(self.bench.look(run.variant)) for run in comparison.runs]
            figure = comparison_figure(comparison, transparent=True, colours=colours, symbols=symbols)
            self.guess.mark(figure, comparison)
            self.guess.judge(comparison)
            self.plot = draw(self.place, figure)
            self.report.value = html.wide(comparison._repr_html_())

    def _show_chosen(self) -> None:
        names, task = self.bench.chosen, self.bench.task
        if task is not self._tried_on:
            self._tried_on = task
            self._trials.clear()
        if task is not None and self.examples.high != _examples(task):
            self.examples.reach(_examples(task), min(_examples(task), FEW_EXAMPLES))
        if task is None:
            said = f"There is nothing to measure on yet. {html.NO_TASK}"
        elif len(names) < 2:
            said = "Tick two or more variants in the list; the first is the baseline."
        else:
            said = f"{html.named(names[1:])} against {names[0]}, on {task.name}. {_measures(task)}"
            variants = [each for name, each in self.bench.variants.items() if name in names]
            said = " ".join([said, *limits(variants, task)])
        line = html.help_line(said)
        if self.who.value != line:
            self.who.value = line
            self.show_estimate()

    def close(self) -> None:
        """Remove the pane from the page."""
        close_tree(self.widget)


def _count(name: str, value: int, low: int, high: int, tooltip: str) -> Number:
    return Number(value, low, high, notch=1, whole=True, description=name, tooltip=tooltip)


def _examples(task: Task | Text) -> int:
    return len(task.test) if isinstance(task, Task) else task.test


def _measures(task: Task | Text) -> str:
    """What will be shown."""
    quality = "the score and how sure right answers are" if isinstance(task, Task) else "perplexity"
    return (
        f"Measured are time to the first token and a token, memory, and {quality}, each with its interval; "
        "shown are speed and quality side by side, with a verdict on each."
    )


def _keep(result: Comparison) -> str:
    """Append the runs to the run store; a disk that refuses does not take the measurement away."""
    store = RunStore()
    try:
        for run in result.runs:
            store.append(run)
    except WorkbenchError as error:
        return f"Measured, and in bench.comparison. {error}"
    return f"Measured: it is bench.comparison, and its runs were added to {store.path}."
