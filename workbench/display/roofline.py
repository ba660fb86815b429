"""Where a variant's passes stand under the roofs of this device and of others; predicted beside measured."""

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.explain import Explanation
from workbench.analysis.memory import Memory
from workbench.core import units
from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE, table
from workbench.display.style import COLOURS, NEUTRAL, bars, plain, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

HEIGHT = 430
BEST = "At best: weights are read and numbers computed at the full rate."
HELD = (
    "Its own: weights that no older variant holds. Kept elsewhere: on disk, or in CPU memory for a GPU. "
    "Engine: what it holds between answers. A token: keys and values for each token of each prompt and answer."
)
APART = 1.6  # times as many operations a byte: room for a name between two points


@draws(Explanation)
def roofline_figure(found: Explanation, transparent: bool = False) -> "go.Figure":
    """Left the roofline, both axes logarithmic; right the time of a pass over its rows.

    Left, a device reaches no point above its line: it rises with the operations a byte until arithmetic is the bound.
    Right, bars are 99 % intervals.

    Args:
        found: what was explained.
        transparent: leave background and text colours to the page.
    """
    from plotly.subplots import make_subplots

    titles = ("Roofline: what each byte read is used for", "A pass over its rows")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.12)
    figure.add_traces([*_roofs(found), _points(found)], rows=1, cols=1)
    figure.add_traces(_passes(found), rows=1, cols=2)
    figure.update_xaxes(type="log", title="operations a byte", row=1, col=1)
    figure.update_yaxes(type="log", title="operations/s", exponentformat="power", row=1, col=1)
    rows = [each.work.rows for each in found.decode]
    figure.update_xaxes(type="log", title="rows side by side", tickvals=rows, row=1, col=2)
    figure.update_yaxes(type="log", title="ms a pass", row=1, col=2)
    figure.update_layout(
        height=HEIGHT, margin={"l": 60, "r": 20, "t": 50, "b": 110}, legend={"orientation": "h", "y": -0.25}
    )
    return styled(figure, transparent)


def _roofs(found: Explanation) -> list[Any]:
    import plotly.graph_objects as go

    kind = found.decode[0].work.kind
    traces = []
    for index, device in enumerate((found.device, *found.devices)):
        x = np.geomspace(0.1, 3000, 60)
        y = np.minimum(device.bandwidth * x, device.rate(kind))
        own = index == 0
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                name=plain(device.name),
                mode="lines",
                line={
                    "color": COLOURS[1] if own else COLOURS[(index + 1) % len(COLOURS)],
                    "width": 3 if own else 1.2,
                    "dash": "solid" if own else "dot",
                },
                visible=True if own or index == 1 else "legendonly",
                hovertemplate=f"{plain(device.name)}: %{{y:.3g}} operations/s<extra></extra>",
            )
        )
    return traces


def _points(found: Explanation) -> Any:
    import plotly.graph_objects as go

    passes = [*found.decode, found.prefill]
    names = [*(f"{each.work.rows}" for each in found.decode), "prompt"]
    x = [each.work.intensity for each in passes]
    return go.Scatter(
        x=x,
        y=[each.work.flops / each.measured.value for each in passes],
        text=apart(x, names),
        customdata=names,
        mode="markers+text",
        textposition="bottom right",
        name="measured, by rows",
        marker={"size": 10, "color": COLOURS[2]},
        hovertemplate="%{customdata}: %{y:.3g} operations/s at %{x:.3g} a byte<extra></extra>",
    )


def apart(places: list[float], names: list[str]) -> list[str]:
    """The names; empty where one would be written over the one before it. The last is always said."""
    kept = [""] * (len(names) - 1) + names[-1:]
    last = 0.0
    for index, (place, name) in enumerate(zip(places[:-1], names, strict=False)):
        if place >= APART * last:
            kept[index], last = name, place
    return kept


def _passes(found: Explanation) -> list[Any]:
    import plotly.graph_objects as go

    rows = [each.work.rows for each in found.decode]
    traces = [
        go.Scatter(
            x=rows,
            y=[1e3 * each.least for each in found.decode],
            name="at least",
            mode="lines",
            line={"dash": "dot", "color": NEUTRAL},
        )
    ]
    for name, colour, symbol in (("predicted", COLOURS[1], "circle-open"), ("measured", COLOURS[2], "circle")):
        values = [getattr(each, name) for each in found.decode]
        traces.append(
            go.Scatter(
                x=rows,
                y=[1e3 * each.value for each in values],
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"size": 10, "symbol": symbol},
                error_y=bars(values, 1e3),
            )
        )
    return traces


@draws(Explanation, HTML)
def explanation_html(found: Explanation) -> str:
    """The sentence, the facts, what to try and what not, and predicted beside measured."""
    lines = "".join(f"<li>{escape(each)}</li>" for each in found.lines)
    tried = "".join(f"<li>{escape(str(each))}</li>" for each in found.suggestions)
    head = ("Pass", "At least (ms)", "Predicted (ms)", "Measured (ms)", "Off by", "Tokens/s")
    rows = []
    for name, each in found.table().iterrows():
        spans = (
            f"{1e3 * each[kind]:.3g} [{1e3 * each[f'{kind}_low']:.3g}, {1e3 * each[f'{kind}_high']:.3g}]"
            for kind in ("predicted", "measured")
        )
        cells = (str(name), f"{1e3 * each['least']:.3g}", *spans, f"{each['error']:+.0%}")
        rows.append((*cells, f"{each['tokens_per_second']:.3g}"))
    return (
        f'{STYLE}<div class="wb-report"><p><b>{escape(found.sentence)}</b></p><ul>{lines}</ul><ul>{tried}</ul>'
        f"{table(head, rows)}{devices_html(found)}<small>{escape(footnote(found))}</small></div>"
    )


def devices_html(found: Explanation) -> str:
    """What the same weights could do at best elsewhere, and where each device's figures are from."""
    most = found.decode[-1].work.rows
    head = ("Device", "Tokens/s at best", f"With {most} rows", "Reads", "Memory", "Fits", "From")
    rows = [
        (
            str(name),
            _count(each["first"]),
            _count(each["last"]),
            f"{units.size(each['bandwidth'])}/s",
            units.size(each["memory"]) if each["memory"] else "?",
            "yes" if each["fits"] else "no",
            _origin(each["source"]),
        )
        for name, each in found.elsewhere().iterrows()
    ]
    sheets = "".join(f"<li>{escape(each.name)}: {escape(each.source)}.</li>" for each in found.devices)
    folded = f"<details><summary>Where these figures are from</summary><ul>{sheets}</ul></details>" if sheets else ""
    shown = f"{table(head, rows, words=True)}<small>{escape(_at_best(found))}</small>{folded}"
    return f'{STYLE}<div class="wb-report wb-devices">{shown}</div>'


def _at_best(found: Explanation) -> str:
    """What is counted, and for which devices something is left out."""
    free = [each.name for each in found.devices if not each.call]
    left = f" What starting operations costs is not known, and left out, for: {', '.join(free)}." if free else ""
    return BEST + left


def _count(number: float) -> str:
    """Three digits, never with an exponent."""
    return f"{float(f'{number:.3g}'):,.10g}"


def _origin(source: str) -> str:
    """Short enough for a cell: what is before the name of a sheet, and whether all of it was confirmed."""
    return source.partition(":")[0] + (", not all confirmed" if "not confirmed" in source else "")


def footnote(found: Explanation) -> str:
    """What was timed, where and how."""
    place = found.environment
    threads = f", {place['threads']} threads" if place.get("threads") else ""
    where = f"{place.get('device', '?')}{threads}; torch {place.get('torch', '?')}."
    return (
        f"{found.variant} after {found.context} tokens; brackets are 99 % bootstrap intervals; predicted from the "
        f"parts of a pass, never from the pass itself. {where}"
    )


@draws(Memory, HTML)
def memory_html(found: Memory) -> str:
    """Every holder in a row, and what is free."""
    head = ("Variant", "On", "Weights", "Its own", "Kept elsewhere", "Engine", "A token")
    rows = [
        (each.name, each.device, *map(units.size, (each.weights, each.owned, each.elsewhere, each.engine, each.token)))
        for each in found.holders
    ]
    said = "".join(f"<li>{escape(each)}</li>" for each in found.lines[len(found.holders) :])
    return f'{STYLE}<div class="wb-report">{table(head, rows)}<ul>{said}</ul><small>{HELD}</small></div>'
