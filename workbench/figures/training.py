"""How a training goes: losses, learning rate and pace, step by step."""

from typing import TYPE_CHECKING

from workbench.figures.style import COLOURS, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.curve import Curve


def curve_figure(curve: "Curve", transparent: bool = False) -> "go.Figure":
    """Loss of every step and of the validation split, over learning rate and tokens a second.

    The traces are always the same four, in this order: loss, validation loss, learning rate, tokens/s; a figure on
    screen can be fed new numbers instead of being drawn anew. A star marks the best validation loss.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, specs=[[{"colspan": 2}, None], [{}, {}]], row_heights=[0.65, 0.35])
    names = ("training loss", "validation loss", "learning rate", "tokens/s")
    modes = ("lines", "lines+markers", "lines", "lines")
    for index, (name, mode, data) in enumerate(zip(names, modes, curve_data(curve), strict=True)):
        figure.add_trace(
            go.Scatter(name=name, mode=mode, line={"color": COLOURS[index], "width": 2}, showlegend=index < 2, **data),
            row=1 if index < 2 else 2,
            col=1 if index < 3 else 2,
        )
    figure.update_traces(marker_size=8, selector={"name": "validation loss"})
    figure.update_xaxes(range=[0, max(1, curve.total)])
    figure.update_xaxes(title="optimizer step", row=2)
    figure.update_yaxes(title="nats a token", row=1)
    figure.update_yaxes(title="learning rate", row=2, col=1, exponentformat="power")
    figure.update_yaxes(title="tokens/s", row=2, col=2, rangemode="tozero")
    figure.update_layout(
        title="Training",
        height=440,
        margin={"l": 60, "r": 20, "t": 70, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    return styled(figure, transparent)


def curve_data(curve: "Curve") -> list[dict[str, object]]:
    """x, y and what else changes of each trace, as `curve_figure` orders them."""
    steps = [each.step for each in curve.points]
    best = curve.best.step if curve.best else None
    watched = [each.step for each in curve.evaluations]
    return [
        {"x": steps, "y": [each.loss for each in curve.points]},
        {
            "x": watched,
            "y": [each.loss for each in curve.evaluations],
            "marker": {"symbol": ["star" if step == best else "circle" for step in watched], "size": 9},
        },
        {"x": steps, "y": [each.rate for each in curve.points]},
        {"x": steps, "y": [each.tokens / max(each.seconds, 1e-9) for each in curve.points]},
    ]
