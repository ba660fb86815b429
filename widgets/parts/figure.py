"""Plotly figures that stay on screen while their numbers change."""

from typing import Any

import ipywidgets as ipw

from widgets.parts.style import close_tree


def draw(place: ipw.Box, figure: Any) -> Any:
    """Show a figure in a place of its own; returns its widget.

    One of the same traces that is shown there already is brought up to date in one message, so that it does not flicker
    and keeps its listeners.

    Args:
        place: a box that holds this figure alone.
        figure: a ``plotly.graph_objects.Figure``.
    """
    import plotly.graph_objects as go

    shown = place.children[0] if place.children else None
    if shown is not None and [each.type for each in shown.data] == [each.type for each in figure.data]:
        with shown.batch_update():
            for old, new in zip(shown.data, figure.data, strict=True):
                old.update(new.to_plotly_json(), overwrite=True)
            shown.update_layout(figure.layout.to_plotly_json(), overwrite=True)
        return shown
    made = go.FigureWidget(figure)
    made._config = made._config | {"responsive": True, "displaylogo": False}
    place.children = [made]
    if shown is not None:
        close_tree(shown)
    return made


def on_cell(figure: Any, clicked: Any) -> None:
    """Call ``clicked(name)`` with the `customdata` of every heat map cell that is clicked."""

    def pass_on(trace: Any, points: Any, state: Any) -> None:
        for row, column in points.point_inds[:1]:
            if name := trace.customdata[row][column]:
                clicked(str(name))

    for trace in figure.data:
        if trace.type == "heatmap":
            trace.on_click(pass_on)
