"""First the guess, then the bar: what an audience expects, taken before it sees what was measured."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from widgets.parts import html, ui
from widgets.parts.number import Number
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.display.style import NEUTRAL, plain
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison

if TYPE_CHECKING:
    from widgets.session import Session

METRIC = "inter_token_latency"


class Guess:
    """How many times as fast a variant will be, guessed before the result is shown.

    Attributes:
        taken: the name of the variant and the guess, once there is one.
        widget: what is shown.
    """

    def __init__(self, bench: "Session", reveal: Callable[[], None]) -> None:
        self.bench = bench
        self.taken: tuple[str, float] | None = None
        self._reveal = reveal
        self.who = ui.Dropdown(description="Variant", tooltip="Whose speed is guessed")
        self.times = Number(
            1.0, 0.1, 10.0, notch=0.05, by_factors=True, description="Times as fast", tooltip="As the baseline"
        )
        self.button = ui.Button(description="Take the guess", button_style="primary", tooltip="Then show the result")
        self.said = ui.HTML()
        asked = ui.HBox([self.who, self.times])
        asked.add_class("wb-grid")
        self.asked = ui.VBox([ui.HTML(html.help_line(QUESTION)), asked, self.button])
        self.widget = ui.VBox([self.asked, self.said])
        self.widget.add_class("wb-guess")
        self.button.on_click(lambda _: self._take())

    def ask(self, names: tuple[str, ...]) -> None:
        """Ask anew, of any of these variants but the first."""
        self.taken, self.said.value = None, ""
        ui.show(self.asked, True)
        self.who.options = names[1:]
        self.who.value = next(iter(names[1:]), None)
        self.button.disabled = len(names) < 2

    def judge(self, comparison: Comparison) -> None:
        """Say how near the guess came."""
        verdict = comparison.verdicts().get(self.taken[0]) if self.taken else None
        if self.taken and verdict and verdict.speed:
            self.said.value = html.message(sentence(*self.taken, verdict.speed))

    def mark(self, figure: Any, comparison: Comparison) -> None:
        """Put the guess into the figure of a comparison, beside what was measured."""
        import plotly.graph_objects as go

        base = comparison.runs[0].estimates.get(METRIC)
        if self.taken and base and any(run.variant == self.taken[0] for run in comparison.runs):
            name, times = self.taken
            marker = {"symbol": "x-thin", "size": 16, "line": {"width": 3, "color": NEUTRAL}}
            at = scales.shown(METRIC, base.value / times)
            said = f"guessed: {at:.1f} ms<extra></extra>"
            figure.add_trace(
                go.Scatter(x=[at], y=[plain(name)], mode="markers", marker=marker, hovertemplate=said), row=1, col=1
            )

    def _take(self) -> None:
        try:
            self.taken = self.who.value, float(self.times.checked)
        except InvalidInput as error:
            self.said.value = html.message(str(error), "error")
            return
        ui.show(self.asked, False)
        self.said.value = html.message(f"Guessed: '{self.taken[0]}' is {self.taken[1]:.3g} times as fast.")
        self._reveal()


def sentence(name: str, guessed: float, found: Estimate) -> str:
    """The guess beside what was measured.

    Args:
        name: of the variant.
        guessed: how many times as fast it was said to be.
        found: how many times as fast it is.
    """
    said = f"Guessed {guessed:.3g} times as fast; measured {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"
    if found.low <= guessed <= found.high:
        return f"'{name}': {said}. The guess lies within the interval."
    side = "too high" if guessed > found.high else "too low"
    return f"'{name}': {said}. The guess was {side}."


QUESTION = "Before the result is shown: how many times as fast as the baseline will it be?"
