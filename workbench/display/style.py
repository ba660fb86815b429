"""One look for every figure: a white card, or transparent for a page with its own colours; outside text escaped."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.core.estimate import Estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's colours, told apart by colour-blind readers; the baseline is the grey one.
COLOURS = ("#6e6e6e", "#0072b2", "#d55e00", "#009e73", "#b8860b", "#a64d8a", "#3a8fc7", "#7a5c00")
# Further ones, as far from these and from each other as 3 to 1 against white and against near-black leaves room for.
MORE_COLOURS = (
    *("#7048f8", "#d80040", "#58a0a0", "#c070f8", "#507848", "#f85898", "#0098f8"),
    *("#f06860", "#b808d8", "#8868f8", "#f80060", "#a050c0", "#f838d8", "#e000a8"),
)
NEUTRAL = "#808080"  # lines that read on light and on dark
# Eight of each, and no number of colours that shares a divisor with eight: 168 looks pass before two are the same.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
MARKS = ("●", "■", "◆", "▲", "▼", "✚", "✖", "★")
PATTERNS = ("", "/", "\\", "x", "-", "|", "+", ".")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "8px 3px", "2px 6px")


class Look(NamedTuple):
    """How one of many is drawn wherever it is: by colour, and by shape for whoever does not see the colour.

    Attributes:
        colour: as CSS writes it.
        symbol: of a point, in Plotly's words.
        mark: the same shape as a character, for lists and tables.
        pattern: of a bar, in Plotly's words; empty for none.
        dash: of a line, in Plotly's words.
    """

    colour: str
    symbol: str
    mark: str
    pattern: str
    dash: str


def look(number: int) -> Look:
    """The look of the variant with this number: 0 is the baseline's grey, and the next 168 all differ.

    Neighbours differ both in colour and in shape; the first seven colours are those of `COLOURS`.
    """
    colours = COLOURS[1:] + MORE_COLOURS
    colour = colours[(number - 1) % len(colours)] if number else COLOURS[0]
    return Look(colour, *(kind[number % 8] for kind in (SYMBOLS, MARKS, PATTERNS, DASHES)))


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
