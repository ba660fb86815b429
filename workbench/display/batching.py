"""Throughput and latency over the number of requests at once, with the knee."""

from html import escape
from typing import TYPE_CHECKING

from workbench.core.drawn import HTML, draws
from workbench.core.estimate import Estimate
from workbench.display.report import STYLE
from workbench.display.style import COLOURS, bars, plain, styled
from workbench.measurement.batching import Batching

if TYPE_CHECKING:
    import plotly.graph_objects as go


@draws(Batching)
def batching_figure(batching: Batching, transparent: bool = False) -> "go.Figure":
    """Throughput on the left, what a request waits from token to token on the right, each with its interval."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = ("Throughput, tokens/s", "Time from token to token, ms")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    for column, (values, scale, unit) in enumerate(
        ((batching.throughput, 1.0, "tokens/s"), (batching.latency, 1000.0, "ms")), start=1
    ):
        figure.add_trace(
            go.Scatter(
                x=list(batching.sizes),
                y=[scale * each.value for each in values],
                error_y=bars(values, scale),
                mode="lines+markers",
                line_color=COLOURS[column - 1],
                showlegend=False,
                hovertemplate=f"%{{x}} at once: %{{y:.4g}} {unit}<extra></extra>",
            ),
            row=1,
            col=column,
        )
    figure.add_vline(x=batching.knee[0], line_dash="dot", line_color="gray")
    figure.update_xaxes(
        type="log", title="requests at once", tickvals=list(batching.sizes), ticktext=[str(n) for n in batching.sizes]
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        title=f"{plain(batching.variant)}: knee at {batching.knee[0]} requests at once (dotted)",
        height=360,
        margin={"l": 60, "r": 20, "t": 90, "b": 60},
    )
    return styled(figure, transparent)


@draws(Batching, HTML)
def batching_html(batching: Batching) -> str:
    """A table of all sizes with their 99 % intervals, the knee, and what was measured where."""
    lines = zip(batching.sizes, batching.throughput, batching.gain, batching.latency, batching.ttft, strict=True)
    rows = "".join(
        f"<tr><td>{size}{' (knee)' if size == batching.knee[0] else ''}</td><td>{_cell(rate)}</td>"
        f"<td>{_cell(gain)}</td><td>{_cell(gap, 1000)}</td><td>{_cell(first, 1000)}</td></tr>"
        for size, rate, gain, gap, first in lines
    )
    heads = ("Requests at once", "Tokens/s", "Times the first", "Token to token, ms", "First token, ms")
    said = "".join(f"<li>{escape(each)}</li>" for each in (str(batching), *batching.notes))
    where = ", ".join(f"{name} {value}" for name, value in batching.environment.items() if value)
    return (
        f'{STYLE}<div class="wb-report"><table><thead><tr>{"".join(f"<th>{each}</th>" for each in heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table><ul>{said}</ul>"
        f"<small>{batching.throughput[0].n} rounds; {escape(where)}.</small></div>"
    )


def _cell(found: Estimate, scale: float = 1.0) -> str:
    value, low, high = (f"{scale * each:.3g}" for each in (found.value, found.low, found.high))
    return f"{value} <small>({low}–{high})</small>"
