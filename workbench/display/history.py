"""Runs over time, or over versions of the libraries."""

from typing import TYPE_CHECKING

from workbench.core.drawn import draws
from workbench.display.style import COLOURS, bars, plain, styled
from workbench.measurement import scales
from workbench.measurement.history import History
from workbench.measurement.runs import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

VERSIONS = ("torch", "transformers")


@draws(History)
def history_figure(
    found: History, metric: str = "throughput", by: str = "time", transparent: bool = False
) -> "go.Figure":
    """A line for each variant, task and device, with 99 % intervals."""
    import plotly.graph_objects as go

    lines: dict[tuple[str, str, str], list[Run]] = {}
    for run in found.runs:
        if metric in run.estimates:
            lines.setdefault((run.variant, run.task, run.environment.get("device", "")), []).append(run)
    figure = go.Figure()
    for number, (key, runs) in enumerate(lines.items()):
        estimates = [run[metric] for run in runs]
        figure.add_trace(
            go.Scatter(
                x=[run.measured_at if by == "time" else _versions(run) for run in runs],
                y=[scales.shown(metric, each.value) for each in estimates],
                error_y=bars(estimates, scales.METRICS[metric][2]),
                mode="lines+markers" if by == "time" else "markers",
                name=plain(", ".join(filter(None, key))),
                line_color=COLOURS[number % len(COLOURS)],
                text=[plain(f"{_versions(run)}; {scales.text(metric, run[metric])}") for run in runs],
                hovertemplate="%{text}",
            )
        )
    figure.update_layout(
        title=f"{scales.METRICS[metric][0]} over {by}",
        xaxis={"title": "", "type": "date" if by == "time" else "category"},
        yaxis={"title": scales.title(metric), "rangemode": "tozero"},
        height=420,
        showlegend=True,
    )
    return styled(figure, transparent)


def _versions(run: Run) -> str:
    return plain(", ".join(f"{name} {run.environment.get(name, '?')}" for name in VERSIONS))
