"""How a training goes: losses, learning rate and pace, step by step."""

from typing import TYPE_CHECKING

from workbench.core.drawn import draws
from workbench.display.style import COLOURS, styled
from workbench.training.curve import Curve

if TYPE_CHECKING:
    import plotly.graph_objects as go

OVERFITS = 2  # evaluations in a row that are worse than the best


@draws(Curve)
def curve_figure(curve: Curve, transparent: bool = False) -> "go.Figure":
    """Loss of every step and of the validation split, over learning rate, tokens a second and memory.

    The traces are always the same five, in this order; a figure on screen can be fed new numbers instead of being drawn
    anew. A star marks the best validation loss, and says so if training went on and only overfitted.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    specs = [[{"colspan": 3}, None, None], [{}, {}, {}]]
    figure = make_subplots(rows=2, cols=3, specs=specs, row_heights=[0.65, 0.35], horizontal_spacing=0.1)
    names = ("training loss", "validation loss", "learning rate", "tokens/s", "memory")
    modes = ("lines", "lines+markers+text", "lines", "lines", "lines")
    for index, (name, mode, data) in enumerate(zip(names, modes, curve_data(curve), strict=True)):
        figure.add_trace(
            go.Scatter(name=name, mode=mode, line={"color": COLOURS[index], "width": 2}, showlegend=index < 2, **data),
            row=1 if index < 2 else 2,
            col=max(1, index - 1),
        )
    figure.update_traces(textposition="bottom center", selector={"name": "validation loss"})
    figure.update_xaxes(range=[0, max(1, curve.total)])
    figure.update_xaxes(title="optimizer step", row=2)
    figure.update_yaxes(title="nats a token", row=1)
    figure.update_yaxes(title="learning rate", row=2, col=1, exponentformat="power")
    figure.update_yaxes(title="tokens/s", row=2, col=2, rangemode="tozero")
    figure.update_yaxes(title="memory, GB", row=2, col=3, rangemode="tozero")
    figure.update_layout(
        title="Training",
        height=440,
        margin={"l": 60, "r": 20, "t": 70, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    return styled(figure, transparent)


def curve_data(curve: Curve) -> list[dict[str, object]]:
    """x, y and what else changes of each trace, as `curve_figure` orders them."""
    steps = [each.step for each in curve.points]
    best = curve.best.step if curve.best else None
    said = "best: from here on it overfits" if curve.waited >= OVERFITS else ""
    watched = [each.step for each in curve.evaluations]
    return [
        {"x": steps, "y": [each.loss for each in curve.points]},
        {
            "x": watched,
            "y": [each.loss for each in curve.evaluations],
            "marker": {"symbol": ["star" if step == best else "circle" for step in watched], "size": 9},
            "text": [said if step == best else "" for step in watched],
        },
        {"x": steps, "y": [each.rate for each in curve.points]},
        {"x": steps, "y": [each.tokens / max(each.seconds, 1e-9) for each in curve.points]},
        {"x": steps, "y": [each.memory / 1e9 for each in curve.points]},
    ]
