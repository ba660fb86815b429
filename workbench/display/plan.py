"""A plan for many users: devices over users, what 95 % of them wait over the number of devices, and all assumptions."""

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE, table
from workbench.display.style import COLOURS, NEUTRAL, bars, plain, styled
from workbench.serving.plan import Plan

if TYPE_CHECKING:
    import plotly.graph_objects as go

REACH = 10.0  # times fewer and more users than planned
WAITS = (("ttft p95", "target_first", 1.0, "s"), ("gap p95", "target_gap", 1e3, "ms"))


@draws(Plan)
def plan_figure(plan: Plan, transparent: bool = False) -> "go.Figure":
    """Left devices over users, each replica as busy as planned; then first token and token to token over the devices.

    The planned point is marked, and so are the targets; bars are 99 % intervals of the simulation.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = ("Devices over users", "First token, 95 % within (s)", "Token to token, 95 % within (ms)")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.08)
    users = np.unique(np.rint(plan.assumptions.users * np.geomspace(1 / REACH, REACH, 61)).clip(1)).tolist()
    figure.add_trace(
        _line(users, [plan.needed(each) for each in users], COLOURS[1], "%{x:,} users: %{y}"), row=1, col=1
    )
    figure.add_trace(
        go.Scatter(
            x=[plan.assumptions.users],
            y=[plan.devices],
            mode="markers",
            marker={"size": 11, "color": COLOURS[2]},
            showlegend=False,
            hovertemplate="%{x:,} users: %{y} devices<extra>this plan</extra>",
        ),
        row=1,
        col=1,
    )
    for column, (name, target, scale, unit) in enumerate(WAITS, start=2):
        figure.add_trace(_waits(plan, name, scale, unit), row=1, col=column)
        figure.add_hline(
            y=scale * getattr(plan.assumptions, target), line_dash="dot", line_color=NEUTRAL, row=1, col=column
        )
        figure.add_vline(x=plan.devices, line_dash="dot", line_color=COLOURS[2], row=1, col=column)
        figure.update_xaxes(title="devices, spare ones included", tickformat=",d", row=1, col=column)
        figure.update_yaxes(rangemode="tozero", row=1, col=column)
    figure.update_xaxes(type="log", title="users", row=1, col=1)
    figure.update_yaxes(type="log", row=1, col=1)
    measured = "measured times" if plan.assumptions.times else "a prediction by roofline"
    figure.update_layout(
        title=f"{plain(plan.assumptions.model)} on {plain(plan.where)}, from {measured} (targets dotted)",
        height=380,
        margin={"l": 60, "r": 20, "t": 90, "b": 60},
    )
    return styled(figure, transparent)


def _line(x: list[Any], y: list[Any], colour: str, hover: str) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": colour, "shape": "hv"}, showlegend=False,
        hovertemplate=f"{hover}<extra></extra>",
    )  # fmt: skip


def _waits(plan: Plan, name: str, scale: float, unit: str) -> Any:
    import plotly.graph_objects as go

    found = [each.found[name] for each in plan.trials]
    return go.Scatter(
        x=[plan.devices_of(each.replicas) for each in plan.trials],
        y=[scale * each.value for each in found],
        error_y=bars(found, scale),
        mode="lines+markers",
        line_color=COLOURS[1],
        showlegend=False,
        hovertemplate=f"%{{x}} devices: %{{y:.3g}} {unit}<extra></extra>",
    )


@draws(Plan, HTML)
def plan_html(plan: Plan) -> str:
    """The answer, the arithmetic line by line, and every assumption with its unit and source."""
    lines = "".join(f"<li>{escape(each)}</li>" for each in plan.lines)
    rows = [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value), unit, source)
        for name, value, unit, source in plan.assumptions.listed(plan.sources)
    ]
    return (
        f'{STYLE}<div class="wb-report"><p><b>{escape(plan.sentence)}</b></p><ol>{lines}</ol>'
        f"{table(('Assumption', 'Value', 'Unit', 'From'), rows, words=True)}"
        "<small>Change any of them with plan.but(users=...). Brackets are 99 % intervals of the simulation alone: they "
        "do not hold what the assumptions may be off by.</small></div>"
    )
