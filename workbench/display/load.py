"""Services under load: what requests wait and what is answered, over the load and over time."""

from html import escape
from typing import TYPE_CHECKING, Any

from workbench.core.drawn import HTML, draws
from workbench.core.estimate import Estimate
from workbench.display.report import STYLE
from workbench.display.style import COLOURS, bars, plain, styled
from workbench.serving.load import TIMELINE, LoadTest
from workbench.serving.sent import PERCENTILES, Stage

if TYPE_CHECKING:
    import plotly.graph_objects as go

TITLES = ("First token p95, s", "Whole answer p95, s", "Tokens/s")
LOADS = {"rate": "requests a second", "concurrency": "requests at once"}


@draws(LoadTest)
def load_figure(found: LoadTest, transparent: bool = False) -> "go.Figure":
    """A row for each kind of load: 95th percentiles with their intervals, and throughput."""
    from plotly.subplots import make_subplots

    kinds = list(dict.fromkeys(each.kind for each in found.stages))
    figure = make_subplots(
        rows=len(kinds), cols=3, subplot_titles=TITLES * len(kinds), horizontal_spacing=0.08, vertical_spacing=0.2
    )
    for row, kind in enumerate(kinds, start=1):
        for number, name in enumerate(found.names):
            stages = sorted((e for e in found.stages if e.name == name and e.kind == kind), key=lambda each: each.level)
            for column in (1, 2, 3):
                shown = row == 1 and column == 1 and len(found.names) > 1
                figure.add_trace(_line(stages, column, plain(name), number, shown), row=row, col=column)
        figure.update_xaxes(title=LOADS[kind], row=row)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(title="Under load", height=120 + 260 * len(kinds), margin={"l": 60, "r": 20, "t": 90, "b": 60})
    return styled(figure, transparent)


def _line(stages: list[Stage], column: int, name: str, number: int, shown: bool) -> Any:
    import plotly.graph_objects as go

    line: dict[str, Any] = {
        "x": [each.level for each in stages],
        "mode": "lines+markers",
        "line_color": COLOURS[number % len(COLOURS)],
        "name": name,
        "legendgroup": name,
        "showlegend": shown,
    }
    if column == 3:
        return go.Scatter(y=[each.throughput for each in stages], hovertemplate="%{y:.4g} tokens/s", **line)
    measure = "ttft" if column == 1 else "latency"
    values = [each.percentile(measure, 95) for each in stages]
    return go.Scatter(
        y=[each.value if each else None for each in values],
        error_y=bars([each or Estimate.exact(0.0, "s") for each in values]),
        hovertemplate="%{y:.3g} s",
        **line,
    )


@draws(LoadTest, TIMELINE)
def load_timeline(found: LoadTest, transparent: bool = False) -> "go.Figure":
    """A point a request, in the last stage: when it came, and how long its answer took."""
    import plotly.graph_objects as go

    stage = found.stages[-1]
    figure = go.Figure()
    for number, replica in enumerate(sorted({each.replica for each in stage.answered})):
        sent = [each for each in stage.answered if each.replica == replica]
        figure.add_trace(_points(sent, plain(replica or stage.name), COLOURS[number % len(COLOURS)], "circle"))
    for error in stage.errors:
        sent = [each for each in stage.sent if each.error == error]
        figure.add_trace(_points(sent, plain(error), "gray", "x"))
    figure.update_layout(
        title=f"{plain(stage.name)}: each request, by the replica that answered",
        xaxis_title="came after, s",
        yaxis_title="whole answer after, s",
        height=360,
        showlegend=True,
    )
    return styled(figure, transparent)


def _points(sent: list[Any], name: str, colour: str, symbol: str) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[each.due for each in sent],
        y=[each.latency for each in sent],
        mode="markers",
        marker={"color": colour, "symbol": symbol},
        name=name,
    )


@draws(LoadTest, HTML)
def load_html(found: LoadTest) -> str:
    """A row a service and level, with 99 % intervals, and what was measured where."""
    heads = ["Service", "Load", "Requests", "Not answered", "Tokens/s", "Good a second"]
    heads += [f"{title} p{percent}, s" for title in ("First token", "Whole answer") for percent in PERCENTILES]
    rows = "".join(f"<tr>{''.join(f'<td>{each}</td>' for each in _cells(stage))}</tr>" for stage in found.stages)
    said = "".join(f"<li>{escape(each)}</li>" for each in found.notes)
    where = ", ".join(f"{name} {value}" for name, value in found.environment.items() if value)
    return (
        f'{STYLE}<div class="wb-report"><table><thead><tr>{"".join(f"<th>{each}</th>" for each in heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table><ul>{said}</ul><small>Asked from: {escape(where)}.</small></div>"
    )


def _cells(stage: Stage) -> list[str]:
    errors = ", ".join(f"{number} {escape(kind)}" for kind, number in stage.errors.items()) or "none"
    load = f"{stage.level:g} {'requests/s' if stage.kind == 'rate' else 'at once'}"
    percentiles = [stage.percentile(measure, each) for measure in ("ttft", "latency") for each in PERCENTILES]
    good = stage.goodput if stage.sent else None
    return [
        escape(stage.name),
        load,
        str(len(stage.sent)),
        errors,
        f"{stage.throughput:.4g}",
        cell(good),
        *map(cell, percentiles),
    ]


def cell(found: Estimate | None) -> str:
    """A value with its interval, or a dash."""
    if found is None:
        return "–"
    return f"{found.value:.3g} <small>({found.low:.3g}–{found.high:.3g})</small>"
