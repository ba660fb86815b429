"""From a goal to a recipe: what is wanted in plain controls, the front as it grows, and the answer."""

from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from widgets.parts import html, ui
from widgets.parts.code import Snippet
from widgets.parts.figure import Plot, draw
from widgets.parts.message import Message
from widgets.parts.number import Number
from widgets.parts.style import close_tree
from workbench.analysis.found import Search as Found
from workbench.analysis.goals import BETTER
from workbench.analysis.search import search
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.measurement import scales
from workbench.steps import families

if TYPE_CHECKING:
    from widgets.session import Session

GOALS = [(scales.METRICS[each][0], each) for each in scales.METRICS if each in BETTER]
USUAL = ("prune", "quantize")  # families that are searched unless others are chosen
NO_BOUND = ""
BOUNDS = 3  # that can be set here; code takes any number


class Search:
    """The search pane.

    Attributes:
        found: what the last search came to, or None.
        plot: its figure, once there is one.
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.found: Found | None = None
        self._asked: dict[str, Any] = {}
        self.plot: Plot | None = None
        self.goal = ui.Dropdown(options=GOALS, value="weight_bytes", description="Best", tooltip="What to be best at")
        self.bounds = [_bound(number) for number in range(1, BOUNDS + 1)]
        self.bounds[0][0].value, self.bounds[0][1].value = "perplexity", "<= 1.2 * baseline"
        self.families = ui.SelectMultiple(
            options=[(html.family(each), each) for each in families()],
            value=USUAL,
            rows=len(families()),
            description="Combine",
            tooltip="Families of steps; of each one step or none",
        )
        self.budget = ui.Text(value="10min", description="Budget", tooltip="Time for all of it, such as 20min")
        self.start = ui.Button(
            description="Search", button_style="primary", tooltip="Try combinations until the budget is spent"
        )
        self.trial = Number(0, 0, 10_000, whole=True, description="Trial", tooltip="Of which the variant is made")
        self.take = ui.Button(
            description="Add to the list", tooltip="Make this trial's variant, to talk to and compare", disabled=True
        )
        self.points = Number(2, 0, 100, description="Give up", tooltip="By how much a bound on the score is loosened")
        self.give = ui.Button(
            description="What would I gain?", tooltip="The best trial if the score may be lower", disabled=True
        )
        self.message, self.answer, self.place = Message(bench), ui.HTML(), ui.VBox()
        self.gain, self.code = ui.HTML(), Snippet()
        wanted = ui.HBox([self.goal, self.budget])
        wanted.add_class("wb-grid")
        footer, after = ui.HBox([self.start]), ui.HBox([self.trial, self.take, self.points, self.give])
        for box in (footer, after):
            box.add_class("wb-footer")
        rows = [ui.HBox(list(each)) for each in self.bounds]
        for row in rows:
            row.add_class("wb-grid")
        self.widget = ui.VBox(
            [wanted, *rows, self.families, footer, self.message, self.place, self.answer, after, self.gain, self.code]
        )
        self.widget.add_class("wb-panel")
        self.start.on_click(lambda _: self.run())
        self.take.on_click(lambda _: self.add(str(self.trial.value)))
        self.give.on_click(lambda _: self.loosen())
        for knob in (self.goal, self.families, self.budget, *(each for pair in self.bounds for each in pair)):
            knob.observe(lambda _: self._show_code(), "value")
        self._show_code()

    def run(self) -> None:
        """Queue the search."""
        with self.message.refusals():
            base, task = self.bench.base, self.bench.task
            if task is None:
                raise InvalidInput(f"This bench has no task to search on. {html.NO_TASK}")
            settings = self._settings()

            def work(progress: Progress) -> str:
                self._asked = settings
                found = search(base, task, **settings, progress=progress, on_update=self._show)
                self._show(found)
                return f"Tried {len(found.trials)} recipes; the answer is below."

            self.message.submit("Search", work, key="search")

    def add(self, number: str) -> None:
        """Queue the making of a trial's variant, for the list."""
        with self.message.refusals():
            found, base, task = self._known(), self.bench.base, self.bench.task
            at = int(number) if number.isdigit() else -1

            def work(progress: Progress) -> str:
                return f"It is on the list as '{self.bench.add(found.variant(at, base, task, progress))}'."

            self.message.submit(f"Make trial {number}", work)

    def loosen(self) -> None:
        """Say what a lower score would gain."""
        with self.message.refusals():
            self.gain.value = html.help_line(self._known().giving(self.points.checked / 100))

    def close(self) -> None:
        """Remove the pane from the page."""
        close_tree(self.widget)

    def _known(self) -> Found:
        if self.found is None:
            raise InvalidInput("Nothing was searched yet: do that first.")
        return self.found

    def _settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {"goal": self.goal.value, "constraints": self._constraints()}
        return found | {"space": list(self.families.value), "budget": self.budget.value}

    def _constraints(self) -> dict[str, Any]:
        bounds: dict[str, list[str]] = {}
        for metric, words in self.bounds:
            if metric.value != NO_BOUND:
                bounds.setdefault(metric.value, []).append(words.value)
        return {metric: words[0] if len(words) == 1 else words for metric, words in bounds.items()}

    def _show(self, found: Found) -> None:
        """Show what is known so far."""
        figure = found.figure(transparent=True) if found.whole else None
        answer = html.wide(found._repr_html_())
        with self.bench.lock:
            if self.bench.closed:
                return
            self.found = found
            self.take.disabled = self.give.disabled = False
            if figure is not None:
                self.plot = draw(self.place, figure, self.add)
            self.answer.value = answer
            self._show_code()

    def _show_code(self) -> None:
        try:
            now = self._settings()
        except WorkbenchError as error:
            self.code.value = f"# {error}"
            return
        settings = ", ".join(f"{name}={value!r}" for name, value in now.items())
        answered = self.found is not None and self.found.best is not None and now == self._asked
        best = f"\n{self.found.code}" if self.found is not None and answered else ""
        self.code.value = f"found = wb.search(base, task, {settings}){best}"


def _bound(number: int) -> tuple[ipw.Dropdown, ipw.Text]:
    """A metric and the words of its bound."""
    metric = ui.Dropdown(
        options=[("no bound", NO_BOUND), *GOALS],
        value=NO_BOUND,
        description=f"Bound {number}",
        tooltip="A metric that must keep to a bound",
    )
    words = ui.Text(
        value="<= 1.1 * baseline", description="is", tooltip="Such as <= 100 MB, <= 30 ms or >= 0.98 * baseline"
    )
    return metric, words
