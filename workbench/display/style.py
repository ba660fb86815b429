"""One look for every figure: a white card, or transparent for a page with its own colours; outside text escaped."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.core.estimate import Estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's colours, told apart by colour-blind readers; the baseline is the grey one.
COLOURS = ("#6e6e6e", "#0072b2", "#d55e00", "#009e73", "#b8860b", "#a64d8a", "#3a8fc7", "#7a5c00")
NEUTRAL = "#808080"  # lines that read on light and on dark
# One for every round through the colours; filled, hollow and dotted where the bench's list is so too.
SYMBOLS = (
    *("circle", "diamond", "square-open", "triangle-up-open-dot"),
    *("star", "cross", "hexagon-open", "triangle-down-open-dot"),
)
ROW = 22  # pixels that one variant's line takes in a figure of many
LONGEST_LABEL = 28  # characters that fit beside a figure


def symbol(look: int) -> str:
    """The marker of the variant with this look: another one each time the colours begin anew."""
    return SYMBOLS[look // len(COLOURS) % len(SYMBOLS)]


def label(name: str, longest: int = LONGEST_LABEL) -> str:
    """A name as short as a label must be: its middle left out, since names often differ at their ends."""
    if len(name) <= longest:
        return name
    return f"{name[: longest // 2]}…{name[len(name) - (longest - 1) // 2 :]}"


def plain(text: str) -> str:
    """Text that Plotly shows as it is: no tags, no links, no formulas."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def short_names(modules: Sequence[str]) -> list[str]:
    """The last part of every path where that tells them apart, else all of it."""
    last = [module.rpartition(".")[2] for module in modules]
    return last if len(set(last)) == len(last) else list(modules)


def bars(values: Sequence[Estimate], scale: float = 1.0) -> dict[str, Any]:
    """Intervals as Plotly draws them around values of another scale."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (each.high - each.value) for each in values],
        "arrayminus": [scale * (each.value - each.low) for each in values],
    }


def styled(figure: "go.Figure", transparent: bool) -> "go.Figure":
    """The workbench's look: a white card that reads on any page, or transparent for a page with its own colours."""
    figure.update_layout(template="plotly_white", font={"size": 13}, hoverlabel={"align": "left"})
    figure.update_annotations(font_size=14)
    if transparent:
        figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return figure
