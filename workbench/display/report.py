"""A comparison as static HTML: a table and the verdicts, safe to save and readable without a kernel."""

from collections.abc import Sequence
from html import escape

from workbench.core.drawn import HTML, draws
from workbench.core.estimate import CONFIDENCE
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison

STYLE = """
<style>
.wb-report { font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px; overflow-x: auto; }
.wb-report table { border-collapse: collapse; margin: 4px 0 8px; }
.wb-report th, .wb-report td { text-align: right; padding: 4px 10px; white-space: nowrap; }
.wb-report th:first-child, .wb-report td:first-child { text-align: left; font-weight: 600; }
.wb-report thead th { border-bottom: 1px solid currentColor; vertical-align: bottom; }
.wb-report thead th { white-space: normal; min-width: 5em; }
.wb-report tr > .wb-words { text-align: left; white-space: normal; min-width: 14em; }
.wb-report tbody tr + tr td { border-top: 1px solid rgba(128, 128, 128, .35); }
.wb-report small { opacity: .8; }
.wb-report ul { margin: 4px 0; padding-left: 20px; }
</style>
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """A table of texts, escaped; the last column may be of words, which break into lines."""
    mark = ' class="wb-words"' if words else ""

    def line(kind: str, cells: Sequence[str]) -> str:
        marks = [""] * (len(cells) - 1) + [mark]
        return "".join(f"<{kind}{each}>{escape(cell)}</{kind}>" for each, cell in zip(marks, cells, strict=True))

    body = "".join(f"<tr>{line('td', cells)}</tr>" for cells in rows)
    return f"<table><thead><tr>{line('th', head)}</tr></thead><tbody>{body}</tbody></table>"


@draws(Comparison, HTML)
def comparison_html(comparison: Comparison) -> str:
    """Table of all metrics with their 99 % intervals, the verdict on every variant, and what was measured where."""
    head = "".join(f"<th>{escape(scales.title(metric))}</th>" for metric in comparison.metrics)
    rows = "".join(_row(comparison, index) for index in range(len(comparison.runs)))
    lines = [(comparison.baseline.variant, note) for note in comparison.baseline.notes]
    lines += [(name, str(verdict)) for name, verdict in comparison.verdicts().items()]
    said = "".join(f"<li><b>{escape(name)}</b>: {escape(each)}</li>" for name, each in lines)
    table = f"<table><thead><tr><th>Variant</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    partial = f"<p><b>Partial: {escape(comparison.partial)}</b>, not a result.</p>" if comparison.partial else ""
    return (
        f'{STYLE}<div class="wb-report">{partial}{table}'
        f"{f'<ul>{said}</ul>' if said else ''}<small>{escape(footnote(comparison))}</small></div>"
    )


def footnote(comparison: Comparison) -> str:
    """What was measured, where and how, in two sentences."""
    run = comparison.baseline
    place = run.environment
    rounds = f"{run.settings['rounds']} interleaved rounds of {run.settings['new_tokens']} tokens"
    threads = f", {place['threads']} threads" if place.get("threads") else ""
    sure = f"{100 * comparison.confidence:.4g} %"
    many = f", each at {sure} since they are {len(comparison.runs) - 1}" if comparison.confidence > CONFIDENCE else ""
    return (
        f"Task {run.task}; {rounds}; brackets are 99 % bootstrap intervals; verdicts are paired against "
        f"{run.variant}{many}; what 'would show' would do so four times in five. "
        f"{place['device']}{threads}; torch {place.get('torch', '?')}, transformers {place.get('transformers', '?')}; "
        f"{run.measured_at}."
    )


def _row(comparison: Comparison, index: int) -> str:
    run = comparison.runs[index]
    cells = "".join(
        f"<td>{escape(scales.text(metric, run[metric]))}</td>" if metric in run.estimates else "<td>–</td>"
        for metric in comparison.metrics
    )
    return f"<tr><td>{escape(run.variant)}</td>{cells}</tr>"
