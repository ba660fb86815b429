"""Text to HTML: everything that is not ours is escaped, here and nowhere else."""

import inspect
from collections.abc import Iterable, Sequence
from html import escape

from workbench.analysis.diff import Matrix
from workbench.analysis.explain import Explanation
from workbench.analysis.preview import Preview
from workbench.answering.speaker import Respondent
from workbench.core import units
from workbench.core.jobs import Job
from workbench.core.listed import Listed
from workbench.layers.sensitivity import Sensitivity
from workbench.retrieval.recall import Found
from workbench.step import Forecast, Step
from workbench.training.curve import Curve, Evaluation
from workbench.variant import Variant

MOST_NAMED = 12  # layers in a list
MOST_TOLD = 6  # variants in a sentence
MOST_SHOWN = 200  # characters of a prompt
NO_TASK = "Choose data in the Load tab, or give Bench a task."
ENDS = {
    "done": "ended",
    "cancelled": "cancelled, so that nothing was kept",
    "failed": "failed, so that nothing was kept",
}


def words(name: str) -> str:
    """A field, step family or other identifier as a title: ``block_size`` becomes ``Block size``."""
    return name.replace("_", " ").capitalize()


def family(name: str) -> str:
    """A step family as the title of a tab."""
    return {"finetune": "Fine-tune"}.get(name, words(name))


def message(text: str, kind: str = "info", details: str = "") -> str:
    """A line of news: kind is info, done or error; details fold."""
    if not text:
        return ""
    folded = f"<details><summary>Details</summary><pre>{escape(details)}</pre></details>" if details else ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="wb-message wb-{kind}" role="{role}">{escape(text)}{folded}</div>'


def job_message(job: Job, done: str, notes: Sequence[str] = (), cancelled: str = "") -> str:
    """How a job is going, or how it ended and what should be known of it; what is listed opens on a click."""
    if job.status == "done":
        said = [each for each in notes if not isinstance(each, Listed)]
        tables = [
            folded_table(f"{each.heading} All {len(each.rows)} in a table", each.columns, each.rows)
            for each in notes
            if isinstance(each, Listed)
        ]
        return message(" ".join([done, *said]), "done") + "".join(tables)
    if job.status == "failed":
        return message(job.error, "error", job.details)
    if job.status == "cancelled":
        return message(cancelled or f"{job.label}: cancelled, nothing was changed.")
    if job.status == "queued":
        return message(f"{job.label}: queued.")
    return message(f"{job.label}: running.")


def status(jobs: "tuple[Job, ...]") -> str:
    """The running job with its bar and remaining time, and how many wait."""
    if not jobs:
        return '<div class="wb-status" role="status"><span>Ready</span></div>'
    job = jobs[0]
    progress = job.progress
    said = [f"<b>{escape(job.label)}</b>"]
    if progress.cancelled:
        said.append("cancelling")
    elif job.status == "queued":
        said.append("starting")
    elif progress.total:
        said.append(escape(progress.label.partition(": ")[2] or progress.label))
        said.append(f"{progress.done} of {progress.total}")
        if progress.eta is not None and progress.eta >= 1:
            said.append(f"about {units.duration(progress.eta)} left")
    waiting = f'<span class="wb-badge">{len(jobs) - 1} queued</span>' if len(jobs) > 1 else ""
    bar = (
        f'<div class="wb-bar" role="progressbar" aria-label="Progress of the running job" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * progress.fraction:.0f}">'
        f'<div style="width:{100 * progress.fraction:.1f}%"></div></div>'
    )
    return f'<div class="wb-status wb-busy" role="status"><span>{" · ".join(said)}</span>{waiting}{bar}</div>'


def header(base: Variant, task: object) -> str:
    """The bench's title line."""
    said = [escape(base.source), escape(f"{base.device} {str(base.dtype).removeprefix('torch.')}")]
    name = getattr(task, "name", None)
    said.append(f"task {escape(name)}" if name else "no task")
    return f'<div class="wb-title"><h2>Bench</h2><p>{" · ".join(said)}</p></div>'


def share(total: int, owned: int) -> str:
    """How large a variant is, and how much of that no older one holds; plain text."""
    if owned == 0:
        return f"{units.size(total)}, all shared: removing it frees nothing"
    if owned >= 0.99 * total:
        return units.size(total)
    return f"{units.size(total)}, of which {units.size(owned)} not shared"


def made_by(variant: Respondent) -> str:
    """A variant's steps as code, or where an endpoint is; plain text."""
    if not isinstance(variant, Variant):
        return variant.source
    return " → ".join(map(repr, variant.recipe)) or f"as loaded from {variant.source}"


def memory(weights: int, kept: int) -> str:
    """What is in memory: the weights of all variants, and what is kept to make more of them sooner."""
    more = f", {units.size(kept)} kept from calibration" if kept else ""
    return help_line(f"In memory: {units.size(weights)} of weights{more}.")


def summary(step: type[Step]) -> str:
    """A method's name and the first sentence of its docstring."""
    return f"{step.__name__}: {inspect.cleandoc(step.__doc__ or '').partition(chr(10))[0].rstrip('.')}"


def explanation(step: type[Step], summed_up: bool = False) -> str:
    """A step's docstring, folded after its first sentence, and its source.

    Args:
        step: what is explained.
        summed_up: whether the first sentence stands elsewhere.
    """
    summary, _, rest = inspect.cleandoc(step.__doc__ or "").partition("\n\n")
    link = f'<a href="{escape(step.paper)}" target="_blank" rel="noopener noreferrer">Source</a>'
    folded = f"<details><summary>Why and when</summary><p>{escape(rest)}</p><p>{link}</p></details>" if rest else link
    first = "" if summed_up else f"<p>{escape(summary)}</p>"
    return f'<div class="wb-explanation">{first}{folded}</div>'


def forecast(expected: Forecast) -> str:
    """What applying would cost, in one line."""
    owned = f"{units.size(expected.owned_bytes)} of" if expected.owned_bytes else "no"
    said = f"Expected: {owned} new memory, weights of {units.size(expected.weight_bytes)}"
    pace = "" if expected.token_ratio is None else f" {token_pace(expected.token_ratio)}"
    if expected.seconds is None:
        return f"{said}; the progress bar will tell how long it takes.{pace}"
    return f"{said}, {units.duration(expected.seconds) if expected.seconds else 'no time'} to apply.{pace}"


def token_pace(ratio: float) -> str:
    """How long a token will take, in a sentence that says so first where it is no gain."""
    slower = "Not faster on this machine: a" if ratio > 0.97 else "On this machine, a"  # a trial tells no less apart
    return f"{slower} token is expected to take about {ratio:.2g} times as long as before."


def preview(found: Preview, name: str, step: str, task: str) -> str:
    """The two answers side by side under the numbers that tell them apart."""
    numbers = {"Took": f"{found.seconds:.1f} s"}
    if found.zeros is not None:
        numbers = {"Zeros": f"{100 * found.zeros:.1f} % of the changed layers"} | numbers
    else:
        numbers = {"Size": f"{found.bits_per_weight:.2f} bits a weight"} | numbers
    if found.kl is not None:
        numbers = {
            "Divergence": f"{found.kl:.3g} nats a token",
            "Perplexity": f"{found.base_perplexity:.4g} → {found.perplexity:.4g}",
        } | numbers
    facts = "".join(f"<div>{escape(key)}<b>{escape(value)}</b></div>" for key, value in numbers.items())
    scored = f"On {found.tokens} tokens of {task}: enough to turn a knob by; Compare measures." if found.tokens else (
        f"Without a task there is no divergence and no perplexity. {NO_TASK}"
    )  # fmt: skip
    answers = "".join(
        f'<div class="wb-answer"><b>{escape(who)}</b><div class="wb-said">{escape(said)}</div></div>'
        for who, said in ((name, found.base_text), (step, found.text))
    )
    return f'<div class="wb-numbers">{facts}</div>{help_line(scored)}<div class="wb-answers">{answers}</div>'


def explanation_of(found: Explanation) -> str:
    """Why a variant is slow: the sentence, and the facts and numbers behind it on a click."""
    rows = [
        (name, *(f"{1e3 * each[kind]:.3g}" for kind in ("least", "predicted", "measured")), f"{each['error']:+.0%}")
        for name, each in found.table().iterrows()
    ]
    facts = "".join(f"<li>{escape(each)}</li>" for each in found.lines)
    table = folded_table("Predicted and measured", ("Pass", "At least (ms)", "Predicted", "Measured", "Off by"), rows)
    return f'<p><b>{escape(found.sentence)}</b></p><ul class="wb-help">{facts}</ul>{table}'


def excluded(layers: Sequence[str], total: int) -> str:
    """How many layers are left out of a step, and which."""
    if not layers:
        return help_line(f"None of {total} layers is excluded.")
    more = f" and {len(layers) - MOST_NAMED} more" if len(layers) > MOST_NAMED else ""
    return help_line(f"{len(layers)} of {total} layers excluded: {', '.join(layers[:MOST_NAMED])}{more}.")


def sensitive(found: Sensitivity, column: int) -> str:
    """The layers that mind a strength most, with their intervals."""
    rows = sorted(range(len(found.layers)), key=lambda row: -found.kl[row, column])[:MOST_NAMED]
    cells = [
        (
            found.layers[row],
            f"{found.kl[row, column]:.3g} [{found.low[row, column]:.3g}, {found.high[row, column]:.3g}]",
        )
        for row in rows
    ]
    title = f"Most sensitive at {found.knob} {found.strengths[column]:g}"
    return folded_table(title, ("Layer", "Divergence (nats a token)"), cells)


def training(curve: Curve, job: Job) -> str:
    """How far a training is, what it reached, and how long it still takes or how it ended."""
    first, best = curve.evaluations[0], curve.best or curve.evaluations[0]
    facts = [
        f"{len(curve.points)} of {curve.total} steps",
        f"validation loss {first.loss:.3f} → {curve.evaluations[-1].loss:.3f}, best {best.loss:.3f} after {best.step}",
    ]
    if curve.points:
        facts.append(f"{curve.tokens_per_second:,.0f} tokens/s")
        left = (curve.total - len(curve.points)) * sum(each.seconds for each in curve.points) / len(curve.points)
        going = "paused" if job.progress.paused else f"about {units.duration(left)} left"
        facts.append(ENDS.get(job.status, going))
    return help_line("; ".join(facts) + ".") + "".join(help_line(note) for note in curve.notes)


def said(found: Evaluation) -> str:
    """What a model in training answers by now."""
    return "".join(
        f'<div class="wb-answer"><b>{escape(prompt[:MOST_SHOWN])}</b><div class="wb-said">{escape(answer)}</div></div>'
        for prompt, answer in found.answers
    )


def changed(matrices: Sequence[Matrix]) -> str:
    """The first of some matrices: how far they moved, and how they are stored now."""
    rows = [
        (each.path, f"{100 * each.change:.3g} %", f"{100 * each.value('zeros'):.1f} %", f"{each.value('bits'):.3g}")
        for each in matrices[:MOST_NAMED]
    ]
    return folded_table("Most changed", ("Matrix", "Change", "Zeros now", "Bits a weight now"), rows)


def found(results: Iterable[Found]) -> str:
    """How often each method found the right document, with intervals."""
    rows = "".join(
        f"<tr><td>{escape(each.method)}</td>"
        + "".join(
            f"<td>{it.value:.2f} [{it.low:.2f}, {it.high:.2f}]</td>"
            for it in (*each.recall.values(), each.reciprocal_rank)
        )
        + f"<td>{1000 * each.seconds.value:.1f} [{1000 * each.seconds.low:.1f}, {1000 * each.seconds.high:.1f}]</td>"
        f"<td>{each.reciprocal_rank.n}</td></tr>"
        for each in results
    )
    names = ("Method", "Recall at 1", "at 5", "at 10", "Reciprocal rank", "Milliseconds", "Questions")
    head = "".join(f"<th>{each}</th>" for each in names)
    return wide(f'<table class="wb-report"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>')


def folded_table(title: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table that opens on a click."""
    first = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(each))}</td>" for each in row) + "</tr>" for row in rows)
    return (
        f"<details><summary>{escape(title)}</summary>"
        f'<table class="wb-report"><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></details>'
    )


def grid(head: Iterable[str], rows: Iterable[Iterable[str]], label: str) -> str:
    """A table that scrolls sideways when there is too little room."""
    first = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows)
    return wide(f'<table class="wb-report"><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>', label)


def named(names: Sequence[str]) -> str:
    """Some names, and how many more there are; not escaped."""
    more = len(names) - MOST_TOLD
    return ", ".join(names[:MOST_TOLD]) + (f" and {more} more" if more > 0 else "")


def help_line(text: str) -> str:
    """Small text under a control."""
    return f'<div class="wb-help">{escape(text)}</div>'


def static(variants: Iterable[Variant], base: Variant) -> str:
    """The list of variants as a plain table, for a notebook without a kernel."""
    rows = "".join(
        f"<tr><td>{escape(each.name)}</td><td>{units.size(each.total_bytes)}</td>"
        f"<td>{escape(' → '.join(map(repr, each.recipe)) or 'as loaded')}</td></tr>"
        for each in variants
    )
    head = "<tr><th>Variant</th><th>Weights</th><th>Recipe</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def wide(table: str, label: str = "Comparison") -> str:
    """A table that scrolls sideways when there is too little room, by keyboard too."""
    return f'<div class="wb-wide" role="region" aria-label="{escape(label)}" tabindex="0">{table}</div>'
