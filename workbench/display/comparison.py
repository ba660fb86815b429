"""Latency, quality and size of several runs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.core import units
from workbench.core.drawn import draws
from workbench.core.estimate import Estimate
from workbench.display.labels import sides
from workbench.display.style import COLOURS, NEUTRAL, ROW, label, plain, styled, symbol
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison
from workbench.measurement.verdict import Verdict

if TYPE_CHECKING:
    import plotly.graph_objects as go

QUALITY = ("score", "perplexity")
LEAST = (200, 232)  # pixels of the two rows of figures where there are few variants
BETWEEN, MARGINS = 88, {"l": 20, "r": 20, "t": 50, "b": 50}
NAMED = 12  # bubbles; among more, names would hide one another
LARGEST = (46, 26)  # pixels across the largest bubble, where they are named and where they are many
WIDE = 800  # pixels, about, that the trade-off has from side to side
ROOM = 1.35  # of the largest value, on the axes of the trade-off


@draws(Comparison)
def comparison_figure(
    comparison: Comparison,
    transparent: bool = False,
    colours: Sequence[str] = COLOURS,
    symbols: Sequence[str] | None = None,
) -> "go.Figure":
    """Latency and quality side by side; below, quality over latency with the weights as bubble size.

    Bars are 99 % intervals of the paired change against the baseline (dotted): a bar that meets the line is no
    difference. The more variants there are, the higher it is.

    Args:
        transparent: leave background and text colours to the page, as the bench does.
        colours: one a run, in order; they begin anew where there are fewer.
        symbols: Plotly's marker symbols, one a run, in order; by default another one each time the colours begin anew.
    """
    from plotly.subplots import make_subplots

    runs = comparison.runs
    heights = [max(LEAST[0], ROW * len(runs)), max(LEAST[1], ROW * len(runs) // 2)]
    inside = sum(heights) + BETWEEN
    quality = next((name for name in QUALITY if name in comparison.metrics), "perplexity")
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        row_heights=heights,
        vertical_spacing=BETWEEN / inside,
        horizontal_spacing=0.09,
        subplot_titles=(
            f"{scales.title('inter_token_latency')}: lower is faster",
            f"{scales.title(quality)}: {'higher' if quality == 'score' else 'lower'} is better",
            "Trade-off: bubble area is the size of the weights",
        ),
    )
    names = [plain(run.variant) for run in runs]
    labels = [plain(label(run.variant)) for run in runs]
    looks = _looks(len(runs), colours, symbols)
    for column, metric in ((1, "inter_token_latency"), (2, quality)):
        figure.add_trace(_intervals(comparison, names, metric, looks), row=1, col=column)
        if metric in runs[0].estimates:
            figure.add_vline(
                scales.shown(metric, runs[0][metric].value),
                line={"dash": "dot", "width": 1.5, "color": NEUTRAL},
                row=1,
                col=column,
            )
        figure.update_yaxes(range=[len(runs) - 0.5, -0.5], ticklabelstandoff=6, row=1, col=column)
        figure.update_xaxes(rangemode="tozero", row=1, col=column)
    figure.update_yaxes(tickmode="array", tickvals=names, ticktext=labels, row=1, col=1)
    figure.update_yaxes(showticklabels=False, row=1, col=2)
    figure.add_trace(_bubbles(comparison, names, labels, looks, quality), row=2, col=1)
    figure.update_xaxes(title_text=scales.title("inter_token_latency"), row=2, col=1)
    figure.update_yaxes(title_text=scales.title(quality), row=2, col=1)
    for axis, metric in ((figure.update_xaxes, "inter_token_latency"), (figure.update_yaxes, quality)):
        found = [scales.shown(metric, run[metric].value) for run in runs if metric in run.estimates]
        # From zero, so that a small difference looks small; with room for the labels.
        axis(range=[0, _end(found)], row=2, col=1)
    figure.update_layout(height=inside + MARGINS["t"] + MARGINS["b"], showlegend=False, margin=MARGINS)
    figure.update_layout(uirevision="comparison")  # zoomed, it stays so while more is measured
    if comparison.partial:
        title = {"text": f"<b>Partial: {plain(comparison.partial)}</b>, not a result", "x": 0, "xref": "paper"}
        figure.update_layout(title=title, margin_t=90)
    return styled(figure, transparent)


def _end(values: Sequence[float]) -> float:
    """Where an axis of the trade-off ends."""
    return ROOM * (max(values, default=0) or 1)


def _shares(values: Sequence[float]) -> list[float]:
    """How far along an axis of the trade-off each value is, from 0 to 1."""
    end = _end(values)
    return [each / end for each in values]


def _looks(count: int, colours: Sequence[str], symbols: Sequence[str] | None) -> list[tuple[str, str]]:
    """Colour and symbol of every run."""
    symbols = symbols or [symbol(index) for index in range(count)]
    return [(colours[index % len(colours)], symbols[index % len(symbols)]) for index in range(count)]


def _markers(looks: Sequence[tuple[str, str]]) -> dict[str, Any]:
    colours = [colour for colour, _ in looks]
    return {"color": colours, "symbol": [each for _, each in looks], "line": {"width": 2, "color": colours}}


def _intervals(comparison: Comparison, names: Sequence[str], metric: str, looks: Sequence[tuple[str, str]]) -> Any:
    import plotly.graph_objects as go

    verdicts = comparison.verdicts()
    found = [run.estimates.get(metric) for run in comparison.runs]
    paired = [_paired(found[0], verdicts.get(run.variant), metric) for run in comparison.runs]
    spans = [(own, change or own) for own, change in zip(found, paired, strict=True)]
    above = [scales.shown(metric, max(0, span.high - own.value)) if own and span else 0 for own, span in spans]
    below = [scales.shown(metric, max(0, own.value - span.low)) if own and span else 0 for own, span in spans]
    return go.Scatter(
        x=[scales.shown(metric, own.value) if own else None for own in found],
        y=names,
        name=scales.title(metric),
        mode="markers",
        marker={"size": 11} | _markers(looks),
        error_x={"type": "data", "array": above, "arrayminus": below, "thickness": 2, "width": 6, "color": NEUTRAL},
        hovertext=[
            "<br>".join(
                [f"{name}: {scales.text(metric, own)}, n={own.n}" if own else f"{name}: not measured yet"]
                + [plain(note) for note in run.notes]
            )
            for name, own, run in zip(names, found, comparison.runs, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _paired(baseline: Estimate | None, verdict: Verdict | None, metric: str) -> Estimate | None:
    """Where a variant lies, with the uncertainty of its change against the baseline, which is what a reader compares.

    The spread of the prompts or texts themselves, which both share, is left out; the baseline has no bar.
    """
    if baseline is None:
        return None
    if verdict is None:
        return Estimate.exact(baseline.value, baseline.unit)
    change = verdict.speed if metric == "inter_token_latency" else verdict.quality
    if change is None:
        return None
    if metric == "inter_token_latency":  # `speed` says how many times faster, so its high end is the low end here
        low, high = baseline.value / change.high, baseline.value / change.low
    elif metric == "perplexity":
        low, high = (baseline.value * math.exp(min(each, 50.0)) for each in (change.low, change.high))
    else:
        low, high = baseline.value + change.low, baseline.value + change.high
    return Estimate(value=baseline.value, low=low, high=high, n=change.n, unit=baseline.unit)


def _bubbles(
    comparison: Comparison,
    names: Sequence[str],
    labels: Sequence[str],
    looks: Sequence[tuple[str, str]],
    quality: str,
) -> Any:
    import plotly.graph_objects as go

    shown = [
        (index, run)
        for index, run in enumerate(comparison.runs)
        if {"inter_token_latency", quality, "weight_bytes"} <= run.estimates.keys()
    ]
    sizes = [run["weight_bytes"].value for _, run in shown]
    named = len(shown) <= NAMED
    across = LARGEST[not named]
    x = [scales.shown("inter_token_latency", run["inter_token_latency"].value) for _, run in shown]
    y = [scales.shown(quality, run[quality].value) for _, run in shown]
    text = [labels[index] for index, _ in shown]
    drawn = [(WIDE * left, LEAST[1] * up) for left, up in zip(_shares(x), _shares(y), strict=True)]
    radii = [across / 2 * math.sqrt(each / (max(sizes) or 1)) for each in sizes]
    return go.Scatter(
        x=x,
        y=y,
        name=f"{scales.title(quality)} over {scales.title('inter_token_latency')}",
        mode="markers+text" if named else "markers",
        text=text,
        hovertext=[names[index] for index, _ in shown],
        textposition=sides(drawn, text, radii) if named else None,
        cliponaxis=False,
        marker={
            "size": sizes,
            "sizemode": "area",
            "sizeref": 2 * max(sizes, default=1) / across**2,
            "sizemin": 6,
            "opacity": 0.75,
        }
        | _markers([looks[index] for index, _ in shown]),
        customdata=[units.size(each) for each in sizes],
        hovertemplate="%{hovertext}: %{x:.1f} ms a token, %{y:.2f}, weights %{customdata}<extra></extra>",
    )
