"""What changed between two variants: every matrix at once, the weights of one matrix, a corner of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.diff import Corner, Diff, Distribution, Matrix
from workbench.core.drawn import draws
from workbench.display.style import NEUTRAL, plain, short_names, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go


# what is shown -> (title, unit, how many of it one is, top of the colour scale if it is fixed)
VALUES: dict[str, tuple[str, str, float, float | None]] = {
    "change": ("Relative change of each weight matrix", "%", 100, None),
    "zeros": ("Zeros in each weight matrix", "%", 100, 100),
    "bits": ("Bits stored for each weight", "bits", 1, None),
}
RESHAPED, MISSING = "#8c8c8c", "#d4d4d4"
BEFORE, AFTER = "#7f7f7f", "#d55e00"
DIVERGING = ((0, "#08519c"), (0.35, "#6aaed6"), (0.5, "#c9c2b8"), (0.65, "#f08a4b"), (1, "#a63603"))
ROW, STRIP, GAP = 16, 30, 50  # pixels


@draws(Diff)
def diff_figure(diff: Diff, value: str = "change", transparent: bool = False) -> "go.Figure":
    """Heat map ``(blocks, modules)``; below it, in a strip, what belongs to no block, such as the output head.

    It has the same number of traces for all variants, and the `customdata` of every cell is its matrix's path.

    Args:
        diff: two variants compared.
        value: "change", or of the second variant "zeros" or "bits".
        transparent: leave background and text colours to the page.
    """
    from plotly.subplots import make_subplots

    outside = [each for each in diff.matrices if each.block is None]
    placed = {(str(each.block), each.module): each for each in diff.matrices}
    grid = [[placed.get((layer, module)) for module in diff.modules] for layer in diff.layers]
    title, unit, factor, top = VALUES[value]
    numbers = [_number(each, value, factor) for each in outside]
    names = short_names([each.module for each in outside])
    labels = [f"{plain(name)}: {_text(number, unit)}" for name, number in zip(names, numbers, strict=True)]
    modules = [plain(name) for name in short_names(diff.modules)]
    height = max(ROW * len(diff.layers), 120)
    figure = make_subplots(rows=2, cols=1, row_heights=[height, STRIP], vertical_spacing=GAP / (height + STRIP + GAP))
    figure.add_traces(_heat(grid, modules, list(diff.layers), value, diff), rows=1, cols=1)
    figure.add_traces(_heat([outside], labels, [""], value, diff), rows=2, cols=1)
    figure.add_traces(_legend(value, diff), rows=1, cols=1)
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(domain=[0, min(1.0, 2 * len(outside) / max(1, len(modules)))], row=2)
    figure.update_yaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(type="category", autorange="reversed", title="block", dtick=1 + len(diff.layers) // 40, row=1)
    figure.update_yaxes(showticklabels=False, row=2)
    largest = max((each.value(value) for each in diff.matrices if not np.isnan(each.value(value))), default=0.0)
    figure.update_layout(
        title=title,
        height=height + STRIP + GAP + 110,
        margin={"l": 60, "r": 20, "t": 75, "b": 35},
        coloraxis={
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": top or factor * largest or 1,
            "colorbar": {"title": f"{value} ({unit})" if unit == "%" else unit},
        },
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"},
    )
    return styled(figure, transparent)


def _number(matrix: Matrix | None, value: str, factor: float) -> float:
    return float("nan") if matrix is None else factor * matrix.value(value)


def _text(number: float, unit: str) -> str:
    return "–" if np.isnan(number) else f"{number:.3g} {unit}"


def _heat(cells: "Sequence[Sequence[Matrix | None]]", x: list[str], y: list[str], value: str, diff: Diff) -> list[Any]:
    """Two traces: the numbers, and in plain greys the matrices that have none."""
    import plotly.graph_objects as go

    factor = VALUES[value][2]
    numbers = [[_number(each, value, factor) for each in row] for row in cells]
    kinds = [[_kind(each, value) for each in row] for row in cells]
    common: dict[str, Any] = {
        "x": x,
        "y": y,
        "text": [["" if each is None else _about(each, diff) for each in row] for row in cells],
        "customdata": [["" if each is None else each.path for each in row] for row in cells],
        "hoverongaps": False,
        "hovertemplate": "%{text}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }
    greys = [[0, RESHAPED], [1, MISSING]]
    return [
        go.Heatmap(z=numbers, coloraxis="coloraxis", **common),
        go.Heatmap(z=kinds, zmin=0, zmax=1, colorscale=greys, showscale=False, **common),
    ]


def _kind(matrix: Matrix | None, value: str) -> float:
    """Of one without a number: 0 for another shape, 1 if a variant lacks it; NaN where there is nothing to say."""
    if matrix is None or not np.isnan(matrix.value(value)):
        return float("nan")
    if matrix.before is None or matrix.after is None:
        return 1.0
    return 0.0 if matrix.before.shape != matrix.after.shape else float("nan")


def _legend(value: str, diff: Diff) -> list[Any]:
    """Traces without points that say what the greys mean, where there are any."""
    import plotly.graph_objects as go

    kinds = {_kind(each, value) for each in diff.matrices}
    sides = ((diff.before, "before"), (diff.after, "after"))
    lacking = [plain(name) for name, side in sides if any(getattr(each, side) is None for each in diff.matrices)]
    said = ((0.0, RESHAPED, "another shape"), (1.0, MISSING, f"not in {' and '.join(lacking)}"))
    return [
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=name,
            showlegend=kind in kinds,
            hoverinfo="skip",
            marker={"symbol": "square", "size": 12, "color": colour},
        )
        for kind, colour, name in said
    ]


def _about(matrix: Matrix, diff: Diff) -> str:
    """Everything known of a matrix, for a hover."""
    lines = [f"<b>{plain(matrix.path)}</b>"]
    if not np.isnan(matrix.change):
        lines.append(f"change {100 * matrix.change:.3g} %")
    for name, stored in ((diff.before, matrix.before), (diff.after, matrix.after)):
        said = "not there"
        if stored is not None:
            rows, columns = stored.shape
            said = f"{rows} x {columns}, {100 * stored.zeros:.1f} % zeros, {stored.bits:.3g} bits a weight"
        lines.append(f"{plain(name)}: {said}")
    return "<br>".join(lines)


@draws(Distribution)
def histogram_figure(found: Distribution, transparent: bool = False) -> "go.Figure":
    """Distributions of the nonzero weights of one matrix, laid over each other.

    Args:
        found: what was counted.
        transparent: leave background and text colours to the page.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    for (name, shares, zeros, beyond), colour in zip(found.sides, (BEFORE, AFTER), strict=False):
        outside = f", {100 * beyond:.2g} % beyond" if beyond else ""
        figure.add_trace(
            go.Scatter(
                x=middles,
                y=100 * shares,
                name=f"{plain(name)}: {_percent(zeros)} zeros{outside}",
                line={"shape": "hvh", "width": 1.5, "color": colour},
                fill="tozeroy",
                hovertemplate="near %{x:.3g}: %{y:.2f} % of the weights<extra></extra>",
            )
        )
    figure.update_layout(
        title=f"Weights of {plain(found.path)}, without zeros",
        height=380,
        margin={"l": 60, "r": 20, "t": 90, "b": 50},
        xaxis={"title": "weight", "zerolinecolor": NEUTRAL},
        yaxis={"title": "share of all weights (%)", "rangemode": "tozero"},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    return styled(figure, transparent)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share else "no"


@draws(Corner)
def closeup_figure(found: Corner, transparent: bool = False) -> "go.Figure":
    """A corner of one matrix in every variant, side by side; zeros are blank.

    Args:
        found: the weights.
        transparent: leave background and text colours to the page.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    sides, at, limit = found.sides, found.at, found.limit
    titles = [f"{plain(name)}: {_percent(float((part == 0).mean()))} zeros here" for name, part in sides]
    figure = make_subplots(rows=1, cols=len(sides), subplot_titles=titles, horizontal_spacing=0.08)
    for column, (_, part) in enumerate(sides, start=1):
        figure.add_trace(
            go.Heatmap(
                z=np.where(part == 0, np.nan, part),
                x=at[1] + np.arange(part.shape[1]),
                y=at[0] + np.arange(part.shape[0]),
                coloraxis="coloraxis",
                hoverongaps=False,
                hovertemplate="row %{y}, column %{x}: %{z:.4g}<extra></extra>",
            ),
            row=1,
            col=column,
        )
    figure.update_xaxes(showgrid=False, zeroline=False, title="input channel", constrain="domain")
    figure.update_yaxes(showgrid=False, zeroline=False, autorange="reversed", constrain="domain")
    figure.update_yaxes(title="output channel", row=1, col=1)
    for axis in range(1, len(sides) + 1):
        figure.update_yaxes(scaleanchor=f"x{axis if axis > 1 else ''}", row=1, col=axis)
    figure.update_layout(
        title=f"A corner of {plain(found.path)}, zeros left blank",
        height=480,
        margin={"l": 60, "r": 20, "t": 90, "b": 50},
        coloraxis={"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": {"title": "weight"}},
    )
    return styled(figure, transparent)
