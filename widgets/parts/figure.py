"""Plotly figures that stay on screen while their numbers change."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import traitlets

from widgets.parts.page import Page, Text
from widgets.parts.style import close_tree

_source: list[Text] = []  # Plotly's, made with the first figure: 5 MB, once a kernel and once a page


class Plot(Page):
    """A figure on screen, drawn from all that is known of it whenever that changes.

    Plotly's own FigureWidget is told what changed, and that is lost on a page that has not drawn it yet.

    Attributes:
        figure: the ``plotly.graph_objects.Figure`` that is shown.
    """

    _esm = Path(__file__).with_name("plot.js")
    _library = traitlets.Unicode().tag(sync=True)

    def __init__(self, figure: Any, clicked: Callable[[str], None] | None = None) -> None:
        self.figure, self._clicked = figure, clicked
        super().__init__(figure.to_json(validate=False), _library=_plotly().model_id)
        self.on_msg(self._heard)

    def show(self, figure: Any) -> None:
        """Show this figure instead, or what has changed in the same one."""
        self.figure = figure
        self.value = figure.to_json(validate=False)

    def _heard(self, _: Any, said: dict[str, Any], buffers: Any) -> None:
        trace, *place = said["cell"]
        with suppress(IndexError, TypeError):  # of a figure that has changed since, or a point that says nothing
            name = self.figure.data[trace].customdata
            for each in place:
                name = name[each]
            if self._clicked and name:
                self._clicked(str(name))


def draw(place: ipw.Box, figure: Any, clicked: Callable[[str], None] | None = None) -> Plot:
    """Show a figure in a place of its own, instead of the one that is there; without a flicker.

    Args:
        place: a box that holds this figure alone.
        figure: a ``plotly.graph_objects.Figure``.
        clicked: called with the `customdata` of a point, or a heat map's cell, when it is clicked.
    """
    if place.children:
        shown: Plot = place.children[0]
        shown.show(figure)
        return shown
    made = Plot(figure, clicked)
    place.children = [made]
    return made


def empty(place: ipw.Box) -> None:
    """Take the figure out of its place."""
    shown, place.children = place.children, ()
    for each in shown:
        close_tree(each)


def _plotly() -> Text:
    """Plotly's source, for the page."""
    from plotly.offline import get_plotlyjs

    if not _source or _source[0].comm is None:
        _source[:] = [Text(value=get_plotlyjs())]
    return _source[0]
