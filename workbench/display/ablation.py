"""A recipe taken apart: what every step does alone, together and in another order."""

from html import escape
from typing import TYPE_CHECKING

from workbench.analysis.ablation import KINDS, Ablation, Effect
from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE, table
from workbench.display.style import COLOURS, NEUTRAL, bars, plain, styled
from workbench.measurement import scales

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = {"alone": COLOURS[1], "sum": COLOURS[0], "together": COLOURS[2], "order": COLOURS[3]}


@draws(Ablation)
def ablation_figure(found: Ablation, transparent: bool = False) -> "go.Figure":
    """A panel a metric: bars for every step alone, the sum of these, all together, and two that change places."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    metrics = found.metrics
    titles = [f"{scales.METRICS[each][0]}, {_unit(each)}" for each in metrics]
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=titles, horizontal_spacing=0.1)
    for column, metric in enumerate(metrics, start=1):
        for kind, colour in SHOWN.items():
            effects = found.of(metric, kind)
            bar = go.Bar(
                x=[_label(each, found.steps) for each in effects],
                y=[each.shown.value for each in effects],
                error_y=bars([each.shown for each in effects]),
                marker_color=colour,
                name=KINDS[kind],
                legendgroup=kind,
                showlegend=column == 1,
                hovertemplate="%{x}: %{y:+.1f}",
            )
            figure.add_trace(bar, row=1, col=column)
    figure.add_hline(y=0, line_color=NEUTRAL, line_width=1)
    figure.update_layout(
        title="What each step does", height=420, barmode="overlay", margin={"l": 50, "r": 20, "t": 90, "b": 110},
        legend={"orientation": "h", "y": -0.45},
    )  # fmt: skip
    return styled(figure, transparent)


def _unit(metric: str) -> str:
    return "points" if metric == "score" else "% more"


def _label(each: Effect, steps: tuple[str, ...]) -> str:
    match each.kind:
        case "sum":
            return "added up"
        case "together":
            return "together"
        case "order":
            return (
                plain(f"{each.steps[1]} before {each.steps[0]}") if len(steps) == 2 else plain(" ⇄ ".join(each.steps))
            )
    return plain(each.steps[0])


@draws(Ablation, HTML)
def ablation_html(found: Ablation) -> str:
    """A row an effect, a column a metric."""
    keys = list(dict.fromkeys((each.kind, each.steps) for each in found.effects))
    known = {(each.kind, each.steps, each.metric): str(each) for each in found.effects}
    rows = [
        [f"{', '.join(steps)} {KINDS[kind]}", *(known.get((kind, steps, metric), "–") for metric in found.metrics)]
        for kind, steps in keys
    ]
    head = ["Change", *(f"{scales.METRICS[each][0]}" for each in found.metrics)]
    refused = "".join(
        f"<li>{escape(', then '.join(steps))}: {escape(why)}</li>" for steps, why in found.refused.items()
    )
    return f'{STYLE}<div class="wb-report">{table(head, rows)}{f"<ul>{refused}</ul>" if refused else ""}</div>'
