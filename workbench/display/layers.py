"""What single layers or blocks are worth: sensitivity of every layer, influence of every block."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.drawn import draws
from workbench.display.style import COLOURS, plain, short_names, styled
from workbench.layers.sensitivity import Sensitivity

if TYPE_CHECKING:
    import plotly.graph_objects as go

ABREAST = 4  # subplots in a row
TICKS = 7  # most of them on the colour bar
LEAST_INFLUENCE = 1e-6  # drawn: below it is rounding


@draws(Sensitivity)
def sensitivity_figure(sensitivity: Sensitivity, transparent: bool = False) -> "go.Figure":
    """A heat map ``(blocks, modules)`` for every strength, all in one logarithmic scale of the divergence.

    The `customdata` of every cell is its layer, as in `Sensitivity.layers`.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    blocks = tuple(dict.fromkeys(layer.partition(".")[0] for layer in sensitivity.layers))
    modules = tuple(dict.fromkeys(layer.partition(".")[2] for layer in sensitivity.layers))
    row_of = {layer: row for row, layer in enumerate(sensitivity.layers)}
    cells = [[f"{block}.{module}" for module in modules] for block in blocks]
    logs = np.log10(np.where(sensitivity.kl > 0, sensitivity.kl, np.nan))
    low, high = (float(np.nanmin(logs)), float(np.nanmax(logs))) if np.isfinite(logs).any() else (-1.0, 0.0)
    logs = np.where(sensitivity.kl == 0, low, logs)
    count = len(sensitivity.strengths)
    rows = math.ceil(count / ABREAST)
    columns = math.ceil(count / rows)
    height = max(150, 12 * len(blocks))
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[_strength(sensitivity.knob, each) for each in sensitivity.strengths],
        shared_yaxes="all",
        shared_xaxes="all",
        horizontal_spacing=0.02,
        vertical_spacing=30 / (height * rows + 30 * (rows - 1)),
    )
    for at in range(count):
        figure.add_trace(
            go.Heatmap(
                z=[[logs[row_of[each], at] if each in row_of else np.nan for each in line] for line in cells],
                x=[plain(name) for name in short_names(modules)],
                y=[plain(name) for name in blocks],
                coloraxis="coloraxis",
                customdata=cells,
                text=[[_about(sensitivity, row_of.get(each), at) for each in line] for line in cells],
                hoverongaps=False,
                hovertemplate="%{text}<extra></extra>",
            ),
            row=at // columns + 1,
            col=at % columns + 1,
        )
    figure.update_xaxes(showgrid=False, tickangle=-60)
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, dtick=1 + len(blocks) // 40, tickfont_size=10
    )
    figure.update_yaxes(title="block", col=1)
    ticks = log_ticks(low, high)
    figure.update_layout(
        title="Divergence (KL) if one layer alone is changed",
        height=height * rows + 30 * (rows - 1) + 180,
        margin={"l": 60, "r": 20, "t": 90, "b": 90},
        coloraxis={
            "colorscale": "Viridis",
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "title": "nats/token",
                "tickvals": [math.log10(each) for each in ticks],
                "ticktext": [f"{each:.3g}" for each in ticks],
            },
        },
    )
    return styled(figure, transparent)


def _strength(knob: str, strength: float) -> str:
    return f"{strength:g} bits" if knob == "bits" else f"{plain(knob)} {strength:g}"


def _about(sensitivity: Sensitivity, row: int | None, column: int) -> str:
    """What a cell says when hovered over."""
    if row is None:
        return ""
    value, low, high = (each[row, column] for each in (sensitivity.kl, sensitivity.low, sensitivity.high))
    strength = _strength(sensitivity.knob, sensitivity.strengths[column])
    layer = plain(sensitivity.layers[row])
    return f"<b>{layer}</b>, {strength}<br>{value:.3g} [{low:.3g}, {high:.3g}] nats/token"


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between ``10 ** low`` and ``10 ** high``, in steps of 1, 2, 5 if there is room; else the ends."""
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [digit * 10.0**power for power in powers for digit in digits]
        inside = [each for each in found if low - 1e-9 <= math.log10(each) <= high + 1e-9]
        if len(inside) <= TICKS:
            break
    if len(inside) < 2:
        return sorted({10**low, 10**high})
    return inside[:: 1 + (len(inside) - 1) // TICKS]


def ranking_figure(influence: Sequence[float], dropped: Sequence[bool] = (), transparent: bool = False) -> "go.Figure":
    """Every block's influence, in order, on a logarithmic scale, with the blocks left out in another colour.

    Points and no bars: a bar on a logarithmic scale has no bottom, and on another one all but the first and the last
    block look alike.

    Args:
        influence: one number a block, 1 - mean cosine of its input and output.
        dropped: whether each is left out; none by default.
        transparent: leave background and text colours to the page.
    """
    import plotly.graph_objects as go

    left_out = [bool(each) for each in dropped] or [False] * len(influence)
    heights = [max(each, LEAST_INFLUENCE) for each in influence]
    ticks = log_ticks(math.log10(min(heights)), math.log10(max(heights)))
    figure = go.Figure()
    for flag, name, colour, symbol in ((False, "stays", COLOURS[1], "circle"), (True, "left out", COLOURS[2], "x")):
        chosen = [index for index, each in enumerate(left_out) if each is flag]
        figure.add_trace(
            go.Scatter(
                x=chosen,
                y=[heights[index] for index in chosen],
                text=[f"{influence[index]:.3g}" for index in chosen],
                mode="markers",
                name=f"{name} ({len(chosen)})",
                marker={"color": colour, "symbol": symbol, "size": 11},
                hovertemplate="block %{x}: influence %{text}<extra></extra>",
            )
        )
    figure.update_layout(
        title="How much each block changes what flows through it",
        height=340,
        showlegend=True,
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        xaxis={"title": "block", "dtick": 1 + len(influence) // 40, "range": [-0.7, len(influence) - 0.3]},
        yaxis={
            "title": "influence (1 - cosine)",
            "type": "log",
            "tickvals": ticks,
            "ticktext": [f"{each:.3g}" for each in ticks],
        },
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    return styled(figure, transparent)
