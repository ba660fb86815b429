"""A comparison or a search as one page for a manager to read and an engineer to run again: no script, no kernel."""

from collections.abc import Sequence
from html import escape
from typing import Any

from workbench.analysis.found import Search
from workbench.core.drawn import PAGE, draws
from workbench.core.errors import WorkbenchError
from workbench.core.estimate import Estimate
from workbench.display.report import footnote, table
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison
from workbench.measurement.runs import Run
from workbench.recipe import step_from_json

CHARTS = ("inter_token_latency", "ttft", "perplexity", "score", "weight_bytes")  # that are drawn, where measured
WIDTH, LEFT, ROW = 640, 170, 30  # of a chart, in pixels
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #5a5a5a; --line: #c8c8c8;
  --mark: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --paper: #161616; --faint: #b0b0b0; --line: #4a4a4a; --mark: #7db8f0; }
}
@media print { :root { --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --mark: #0b5cad; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.answer { font-size: 1.15rem; border-left: 4px solid var(--mark); padding: .3rem 0 .3rem 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { text-align: right; padding: .3rem .7rem; vertical-align: top; } tbody tr { border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; font-weight: 600; } td.wb-words { text-align: left; }
pre { background: color-mix(in srgb, var(--ink) 7%, var(--paper)); padding: .8rem; overflow-x: auto;
  font-size: .85rem; }
figure { margin: 1.4rem 0; break-inside: avoid; } figcaption { color: var(--faint); font-size: .9rem; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; } svg .faint { fill: var(--faint); }
svg line { stroke: var(--line); } svg .bar { stroke: var(--mark); stroke-width: 3; } svg circle { fill: var(--mark); }
small, .faint { color: var(--faint); }
"""


@draws(Comparison, PAGE)
def comparison_page(found: Comparison, question: str = "") -> str:
    """Question, answer, figures, verdicts, recipes, limits, and how to do it again."""
    names = [run.variant for run in found.runs]
    parts = [
        _answer([f"{name}: {said}." for name, said in found.verdicts().items()]),
        _figures(found),
        _recipes(found.runs, "base"),
        _limits(found),
        _again(found),
    ]
    return _page(question or f"How do {', '.join(names)} compare on {found.baseline.task}?", parts)


@draws(Search, PAGE)
def search_page(found: Search, question: str = "") -> str:
    """The same of a search: what was asked for, what was found, what the confirming run says."""
    bounds = ", ".join(map(str, found.constraints)) or "no bounds"
    asked = f"The best {scales.METRICS[found.goal][0].lower()} with {bounds}, starting from {found.base}."
    told = (
        f"{len(found.trials)} recipes were tried on one half of the examples. Whatever is best of many was also lucky, "
        "so the figures below are of another run, on the other half, which the search has not seen."
    )
    parts = [_answer([found.sentence]), f"<p>{escape(asked)} {escape(told)}</p>"]
    if found.comparison is not None:
        parts += [_figures(found.comparison), _recipes(found.comparison.runs, found.base), _limits(found.comparison)]
    parts.append(f"<h2>The recipe as code</h2><pre>{escape(found.code)}</pre>")
    rows = [
        [f"{each.number}", ", then ".join(map(repr, each.steps)) or "nothing", each.ended, each.why]
        for each in found.trials
    ]
    parts.append(
        f"<h2>All trials</h2><div class='wide'>{table(['Trial', 'Recipe', 'Ended at', 'Why'], rows, words=True)}</div>"
    )
    parts += ["".join(f"<p>{escape(each)}</p>" for each in found.notes)]
    if found.comparison is not None:
        parts.append(_again(found.comparison))
    return _page(question or asked, parts)


def _page(question: str, parts: Sequence[str]) -> str:
    title = escape(question)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style></head><body><main><h1>{title}</h1>{''.join(parts)}</main></body></html>\n"
    )


def _answer(lines: Sequence[str]) -> str:
    said = (
        "".join(f"<p>{escape(each)}</p>" for each in lines) or "<p>One variant was measured; there is no verdict.</p>"
    )
    return f'<section class="answer" aria-label="Answer">{said}</section>'


def _figures(found: Comparison) -> str:
    charts = "".join(_chart(found, metric) for metric in CHARTS if metric in found.metrics)
    heads = ["Variant", *map(scales.title, found.metrics)]
    rows = [
        [run.variant, *(scales.text(each, run[each]) if each in run.estimates else "–" for each in found.metrics)]
        for run in found.runs
    ]
    return (
        f"<h2>Figures</h2><p class='faint'>Dots are what was measured, lines 99 % intervals; the first is the baseline."
        f"</p>{charts}<div class='wide'>{table(heads, rows)}</div><p><small>{escape(footnote(found))}</small></p>"
    )


def _chart(found: Comparison, metric: str) -> str:
    """A dot and its interval for every variant, from zero; the numbers stand beside them."""
    known = [(run.variant, run[metric]) for run in found.runs if metric in run.estimates]
    most = max(max(each.high, each.value) for _, each in known) or 1.0
    scale = (WIDTH - LEFT - 190) / most
    rows = "".join(_row(at, name, metric, each, scale) for at, (name, each) in enumerate(known))
    said = "; ".join(f"{name} {scales.text(metric, each)}" for name, each in known)
    title, height = scales.title(metric), ROW * len(known)
    return (
        f'<figure><svg role="img" aria-label="{escape(f"{title}: {said}")}" viewBox="0 0 {WIDTH} {height + 8}" '
        f'width="{WIDTH}" style="max-width:100%"><line x1="{LEFT}" y1="0" x2="{LEFT}" y2="{height}"/>{rows}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def _row(at: int, name: str, metric: str, found: Estimate, scale: float) -> str:
    y, (low, middle, high) = ROW * at + ROW // 2, (LEFT + scale * each for each in (found.low, found.value, found.high))
    short = name if len(name) <= 22 else f"{name[:21]}…"
    return (
        f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(short)}</text>'
        f'<line class="bar" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>'
        f'<circle cx="{middle:.1f}" cy="{y}" r="5"/>'
        f'<text class="faint" x="{high + 10:.1f}" y="{y + 4}">{escape(scales.text(metric, found))}</text>'
    )


def _recipes(runs: Sequence[Run], base: str) -> str:
    parts = []
    for run in runs:
        steps = ", ".join(_called(each) for each in run.recipe)
        notes = "".join(f"<li>{escape(each)}</li>" for each in run.notes)
        code = f"<pre>{escape(f'Recipe([{steps}])')}</pre>"
        parts.append(f"<h3>{escape(run.variant)}</h3>{code}{f'<ul>{notes}</ul>' if notes else ''}")
    return f"<h2>Variants and their recipes</h2><p>From {escape(runs[0].source or base)}.</p>{''.join(parts)}"


def _called(record: dict[str, Any]) -> str:
    """A step as code, also where this version of the workbench has it no more."""
    try:
        return repr(step_from_json(dict(record)))
    except WorkbenchError:
        return str(record)


def _limits(found: Comparison) -> str:
    n = max((len(run.samples.get(each, [])) for run in found.runs for each in ("score", "nll")), default=0)
    lines = [
        f"One machine: {', '.join(f'{name} {value}' for name, value in found.baseline.environment.items() if value)}.",
        f"One task, {found.baseline.task} (fingerprint {found.baseline.fingerprint}), {n} examples or windows.",
        "A difference that is not there was not shown; how small a one would have been is said with each verdict.",
    ]
    missing = [scales.title(each) for each in ("score", "perplexity", "ttft") if each not in found.metrics]
    lines += [f"Not measured: {', '.join(missing)}."] if missing else []
    return f"<h2>Limits</h2><ul>{''.join(f'<li>{escape(each)}</li>' for each in lines)}</ul>"


def _again(found: Comparison) -> str:
    run = found.baseline
    settings = ", ".join(f"{name}={value}" for name, value in run.settings.items() if value)
    code = "\n".join([
        "import workbench as wb",
        "",
        f"base = wb.load({run.source!r})",
        f"task = ...  # {run.task}, fingerprint {run.fingerprint}",
        "variants = [base, ...]  # base.apply(step, task) for the steps of each recipe above",
        f"wb.compare(variants, task, {settings})",
    ])  # fmt: skip
    return f"<h2>Do it again</h2><pre>{escape(code)}</pre><p><small>Measured {escape(run.measured_at)}.</small></p>"
