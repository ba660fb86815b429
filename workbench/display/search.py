"""What a search found: trials by both objectives, the front with its intervals, and the answer."""

from html import escape
from typing import TYPE_CHECKING, Any

from workbench.analysis.found import Search
from workbench.analysis.trials import Trial
from workbench.core.drawn import HTML, draws
from workbench.core.errors import NotAvailable
from workbench.core.estimate import Estimate
from workbench.display.report import STYLE, table
from workbench.display.style import COLOURS, NEUTRAL, bars, plain, styled
from workbench.measurement import scales

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = 12  # trials of the front in a table


@draws(Search)
def search_figure(found: Search, transparent: bool = False) -> "go.Figure":
    """A point a trial; those on the front have intervals and are joined; what was confirmed stands beside them."""
    import plotly.graph_objects as go

    x, y = found.objectives
    front, kept = found.front, {each.number for each in found.feasible}
    others = [each for each in found.whole if each not in front]
    figure = go.Figure()
    figure.add_trace(
        _points([each for each in others if each.number in kept], (x, y), "keeps to the bounds", COLOURS[1])
    )
    figure.add_trace(_points([each for each in others if each.number not in kept], (x, y), "does not", NEUTRAL))
    line = _points(front, (x, y), "front", COLOURS[2])
    line.update(mode="lines+markers", line={"shape": "hv", "width": 1})
    line.update(error_x=_bars(front, x), error_y=_bars(front, y))
    figure.add_trace(line)
    if x in found.seen and y in found.seen:
        base = {"x": [scales.shown(x, found.seen[x].value)], "y": [scales.shown(y, found.seen[y].value)]}
        figure.add_trace(
            go.Scatter(
                **base,
                mode="markers",
                name=plain(found.base),
                marker={"color": COLOURS[0], "size": 12, "symbol": "diamond"},
            )
        )
    confirmed = [each for each in found.promises if x in each.run.estimates and y in each.run.estimates]
    if confirmed:
        figure.add_trace(
            go.Scatter(
                x=[scales.shown(x, each.run[x].value) for each in confirmed],
                y=[scales.shown(y, each.run[y].value) for each in confirmed],
                error_x=bars([each.run[x] for each in confirmed], scales.METRICS[x][2]),
                error_y=bars([each.run[y] for each in confirmed], scales.METRICS[y][2]),
                mode="markers",
                name="confirmed on unseen examples",
                marker={"color": COLOURS[3], "size": 11, "symbol": "star"},
                customdata=[f"{each.number}" for each in confirmed],
                text=[f"trial {each.number}: {each.standing}" for each in confirmed],
            )
        )
    for bound in found.constraints:
        if bound.metric in (x, y):
            at = scales.shown(bound.metric, bound.limit(found.seen))
            add = figure.add_vline if bound.metric == x else figure.add_hline
            add(at, line_dash="dot", line_color=NEUTRAL, annotation_text=plain(str(bound)))
    figure.update_layout(
        title="What was tried", xaxis_title=scales.title(x), yaxis_title=scales.title(y), height=440,
        margin={"l": 60, "r": 20, "t": 60, "b": 60}, legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
    return styled(figure, transparent)


def _points(trials: list[Trial], metrics: tuple[str, str], name: str, colour: str) -> Any:
    import plotly.graph_objects as go

    columns = ([scales.shown(metric, each.estimates[metric].value) for each in trials] for metric in metrics)
    x, y = columns
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        name=name,
        marker={"color": colour, "size": 8},
        customdata=[f"{each.number}" for each in trials],
        text=[plain(f"trial {each.number}: {', '.join(map(repr, each.steps)) or 'nothing'}") for each in trials],
    )


def _bars(trials: list[Trial], metric: str) -> dict[str, Any]:
    found: list[Estimate] = [each.estimates[metric] for each in trials]
    return bars(found, scales.METRICS[metric][2])


@draws(Search, HTML)
def search_html(found: Search) -> str:
    """The answer; what was confirmed; the front of the search; what ended trials."""
    metrics = list(dict.fromkeys((*found.objectives, *(each.metric for each in found.constraints))))
    heads = [scales.title(each) for each in metrics]
    parts = [f"<p><b>{escape(found.sentence)}</b></p>"]
    if found.promises:
        rows = [
            [
                f"trial {each.number}",
                *_cells(each.run.estimates, metrics),
                each.standing,
                repr(found.trials[each.number].steps),
            ]
            for each in found.promises
        ]
        parts += [
            "<p>Confirmed on examples that the search has not seen:</p>",
            table(["", *heads, "Bounds", "Recipe"], rows, words=True),
        ]
    rows = [
        [f"trial {each.number}", *_cells(each.estimates, metrics), repr(each.steps)] for each in found.front[:SHOWN]
    ]
    if rows:
        said = "The front of the search; whatever is best of many was also lucky:"
        parts += [f"<p>{said}</p>", table(["", *heads, "Recipe"], rows, words=True)]
    parts += _importance(found)
    ends = {
        each: sum(trial.ended == each for trial in found.trials)
        for each in dict.fromkeys(t.ended for t in found.trials)
    }
    told = ", ".join(f"{number} ended at '{stage}'" for stage, number in ends.items())
    notes = "".join(f"<li>{escape(each)}</li>" for each in found.notes)
    parts.append(f"<small>{len(found.trials)} trials: {escape(told)}.</small>")
    return f'{STYLE}<div class="wb-report">{"".join(parts)}{f"<ul>{notes}</ul>" if notes else ""}</div>'


def _importance(found: Search) -> list[str]:
    """How much every choice mattered, where enough was tried to tell."""
    try:
        known = found.importance()
    except NotAvailable:  # Optuna is no longer there
        known = {}
    if not known:
        return []
    rows = [[_choice(name), f"{share:.0%}"] for name, share in sorted(known.items(), key=lambda each: -each[1])]
    goal = scales.METRICS[found.goal][0].lower()
    said = f"<p>How much each choice mattered to the {escape(goal)}:</p>"
    return [said, table(["Choice", "Share"], rows, words=True)]


def _choice(name: str) -> str:
    """A choice of the search, in words."""
    place, *rest = name.split(".", 1)
    if not rest:
        return f"step {int(place) + 1}: which"
    step, _, knob = rest[0].rpartition(".")
    return f"step {int(place) + 1}: {knob} of {step}"


def _cells(estimates: dict[str, Estimate], metrics: list[str]) -> list[str]:
    return [scales.text(each, estimates[each]) if each in estimates else "–" for each in metrics]
