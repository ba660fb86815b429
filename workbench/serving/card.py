"""The model card of a deployed folder: how to run it, what was tried, what was measured, and what others do not get."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from workbench.core import units
from workbench.core.errors import InvalidInput
from workbench.core.files import clipped, looks_like_path
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison
from workbench.measurement.runs import Run
from workbench.measurement.verdict import verdict
from workbench.runtime.engine import Eager
from workbench.serving.launch import Launch, command, tried_with
from workbench.serving.smoke import sentence
from workbench.variant import Variant

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
LONGEST = 2000  # characters of a text from outside
MARKUP = re.compile(r"([\\`*_\[\]|~#!$@]|:(?=//)|(?<=www)\.)")  # the last two make links of addresses
LIBRARIES = {"transformers": "transformers", "vllm": "vllm", "gguf": "gguf", "ray": "transformers"}
PROGRAMS = {
    "transformers": "plain transformers",
    "vllm": "vLLM",
    "gguf": "llama.cpp",
    "ray": "the workbench, whose code is in this folder",
}


@dataclass(frozen=True)
class Told:
    """What a card tells beside what the variant knows.

    Attributes:
        layout: how the weights are stored, in words.
        bytes: of the weights.
        remarks: how they differ from the variant's for who reads them, in sentences.
        tests: what the smoke test found; None where it was not run.
        missing: what it would have needed.
        prompts: what it asked.
    """

    layout: str
    bytes: int
    remarks: Sequence[str]
    prompts: Sequence[str]
    tests: Mapping[str, Any] | None = None
    missing: str = ""


def card(variant: Variant, launch: Launch, told: Told, measured: Run | Comparison | None) -> str:
    """README.md: front matter as Hugging Face reads it, then Markdown. Texts from outside are quoted in both."""
    parts = [_front(variant, launch, told), f"# {plain(variant.name)}", _what(variant, launch, told)]
    parts += ["## Run it", _start(variant, launch, told), "## Smoke test", _tests(launch, told)]
    parts += ["## Measured", _figures(variant, measured), "## What others do not get", _lacking(variant, launch, told)]
    parts += ["## How it was made", _made(variant)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """A text from outside as one line that means nothing to Markdown or HTML."""
    line = clipped(" ".join(text.split()), LONGEST)
    return MARKUP.sub(r"\\\1", escape(line, quote=False))


def quoted(text: str) -> str:
    """A text from outside as a scalar of YAML."""
    return json.dumps(clipped(" ".join(text.split()), 200), ensure_ascii=False)


def fenced(text: str, language: str = "") -> str:
    """A block of code, behind a fence that nothing in it can close."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = ["".join(each if each.isprintable() else "?" for each in line) for line in text.split("\n")]
    return "\n".join([f"{fence}{language}", *lines, fence])


def picked(measured: Run | Comparison | None, variant: Variant) -> Run | None:
    """The run of a variant among what was measured.

    Raises:
        InvalidInput: it is of another model or recipe, so that its figures would be those of something else.
    """
    if measured is None:
        return None
    if not isinstance(measured, Run | Comparison):
        raise InvalidInput(
            f"measured takes what compare() or measure() gave, not {type(measured).__name__}; None if nothing."
        )
    runs = measured.runs if isinstance(measured, Comparison) else (measured,)
    recipe = [step.to_json() for step in variant.recipe]
    own = [run for run in runs if run.recipe == recipe and run.source == variant.source]
    named = [run for run in own if run.variant == variant.name]
    if not own:
        names = ", ".join(f"'{clipped(run.variant)}'" for run in runs[:5])
        raise InvalidInput(
            f"'{clipped(variant.name)}' is not among what was measured ({names}), which has another recipe or model: "
            "measure it, or pass measured=None."
        )
    return (named or own)[0]


def _front(variant: Variant, launch: Launch, told: Told) -> str:
    tags = ["llm-optimization-workbench", *([launch.layout] if launch.layout else [])]
    tags += ["gguf"] if launch.target == "gguf" else []
    tags += dict.fromkeys(step.label.lower() for step in variant.recipe)
    lines = ["---"]
    if HUB_ID.fullmatch(variant.source) and not looks_like_path(variant.source):
        lines.append(f"base_model: {quoted(variant.source)}")
    lines += [f"library_name: {LIBRARIES[launch.target]}", "pipeline_tag: text-generation", "tags:"]
    return "\n".join([*lines, *(f"- {quoted(tag)}" for tag in tags), "---"])


def _what(variant: Variant, launch: Launch, told: Told) -> str:
    source = Path(variant.source).name if looks_like_path(variant.source) else variant.source
    return (
        f"A variant of {plain(source)}, made with the LLM Optimization Workbench for "
        f"{PROGRAMS[launch.target]}: {units.size(told.bytes)} of weights ({plain(told.layout)}), up to "
        f"{variant.context_length} tokens of prompt and answer. The licence is that of the model it was made from."
    )


def _start(variant: Variant, launch: Launch, told: Told) -> str:
    ask = {
        "model": "." if launch.target == "transformers" else launch.slug,
        "messages": [{"role": "user", "content": "What is a lobster?"}],
        "max_tokens": variant.decoding.max_new_tokens,
        "temperature": variant.decoding.temperature,
        "top_p": variant.decoding.top_p,
    }
    said = ["pip install -r requirements.txt   # the versions it was tried with", "sh run.sh"]
    call = "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d "
    parts = [
        fenced("\n".join(said), "sh"),
        "`run.sh` starts, on this machine only and at port 8000 unless `HOST` and `PORT` say otherwise:",
        fenced(command(launch), "sh"),
        "Further flags are passed on. All paths are relative: the folder may be moved. `Containerfile` runs it as a "
        "user without rights; it was not built where this was written.",
        fenced(f"{call}'{json.dumps(ask)}'", "sh"),
    ]
    if launch.target == "gguf":
        parts.append("In Ollama, whose `Modelfile` was not tried here:")
        parts.append(fenced(f"ollama create {launch.slug} -f Modelfile && ollama run {launch.slug}", "sh"))
    if launch.target == "vllm":
        ranks = ", ".join(map(str, launch.ranks))
        parts.append(
            f"`--tensor-parallel-size` may be {ranks}, as heads and columns must divide; `--pipeline-parallel-size` up "
            f"to {variant.model.config.get_text_config().num_hidden_layers}."
        )
    return "\n\n".join(parts)


def _tests(launch: Launch, told: Told) -> str:
    again = "`python smoke.py` repeats it, and first says if a file is missing, cut off or changed."
    if told.tests is None:
        tried = f"{tried_with(launch.kind)} " if launch.target == "vllm" else ""
        return f"**Not run**: {told.missing} was not installed where this folder was written. {tried}{again}"
    versions = ", ".join(f"{plain(name)} {plain(each)}" for name, each in told.tests["versions"].items())
    gaps, tie = told.tests["gaps"], told.tests["tie"]
    head = f"Run in a fresh process by {PROGRAMS[launch.target]} on {told.tests['date']} ({versions}): "
    warning = "" if max(gaps) < tie else "**It does not answer as the variant did.** "
    rows = [f"| {plain(prompt)} | {_answered(gap, tie)} |" for prompt, gap in zip(told.prompts, gaps, strict=True)]
    table = "\n".join(["| prompt | first tokens, greedy |", "|---|---|", *rows])
    return f"{warning}{head}{sentence(told.tests)}\n\n{table}\n\n{again}"


def _answered(gap: float, tie: float) -> str:
    if gap == 0:
        return "the same"
    return f"differ first by a near tie of {gap:.2g} nats" if gap < tie else f"differ, by {gap:.2g} nats or more"


def _figures(variant: Variant, measured: Run | Comparison | None) -> str:
    run = picked(measured, variant)
    if run is None or not run.estimates:
        return "Nothing was measured: no figure is given."
    shown = [metric for metric in scales.METRICS if metric in run.estimates]
    baseline = measured.baseline if isinstance(measured, Comparison) and measured.baseline is not run else None
    head = ["", "value and 99 % interval", "n", *([f"{plain(baseline.variant)} (baseline)"] if baseline else [])]
    rows = [head, ["---"] * len(head)]
    for metric in shown:
        other = baseline.estimates.get(metric) if baseline else None
        row = [scales.title(metric), scales.text(metric, run[metric]), str(run[metric].n)]
        rows.append([*row, *([scales.text(metric, other) if other else "–"] if baseline else [])])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    missing = [scales.title(each) for each in ("ttft", "perplexity", "score", "peak_memory") if each not in shown]
    place = run.environment
    threads = f", {plain(place['threads'])} threads" if place.get("threads") else ""
    where = (
        f"Measured in the workbench, not in the program above: task {plain(run.task)}, "
        f"{plain(place.get('device', '?'))}{threads}, torch {plain(place.get('torch', '?'))}, {plain(run.measured_at)}."
    )
    parts = [table, where]
    if baseline:
        parts.append(f"Against {plain(baseline.variant)}: {plain(str(verdict(baseline, run)))}.".replace("..", "."))
    parts += [f"Not measured: {', '.join(missing)}."] if missing else []
    return "\n\n".join([*parts, *(f"- {plain(note)}" for note in run.notes)])


def _lacking(variant: Variant, launch: Launch, told: Told) -> str:
    names = ", ".join(dict.fromkeys(plain(type(stage).__name__) for stage in variant.stages))
    lines = []
    if launch.target == "ray":
        said = f"Requests pass {names}." if names else "No stage rewrites requests."
        lines.append(f"Nothing: the workbench serves all of the variant. {said}")
        for stage in variant.stages:
            if place := getattr(stage, "source", ""):
                said = "which are not in this folder: another machine needs them at the same place"
                lines.append(f"{plain(type(stage).__name__)} reads documents at {plain(str(place))}, {said}.")
    elif names:
        lines.append(
            f"**This folder is the weights alone.** In the workbench requests and answers pass {names}, which "
            f"{PROGRAMS[launch.target]} does not know: it answers as if they were not there, and the figures above do "
            'not hold for it. Deploy with target="ray" to serve all of it.'
        )
    else:
        lines.append("No stage rewrites requests or answers: the weights are all of the variant.")
    if launch.target != "ray":
        if variant.engine != Eager():
            lines.append(
                f"The engine {plain(type(variant.engine).__name__)} is the workbench's: others run it their way."
            )
        lines.append(
            "Others take sampling settings from generation\\_config.json or their own defaults; the variant's are "
            f"temperature {variant.decoding.temperature:g}, top\\_p {variant.decoding.top_p:g}, at most "
            f"{variant.decoding.max_new_tokens} tokens: send them with a request."
        )
    own = str(variant.dtype).removeprefix("torch.")
    if launch.dtype != own:
        lines.append(
            f"vLLM computes with packed weights in {launch.dtype}, where the variant did in {own}, and answers "
            f"otherwise the more for it: a variant that was loaded in {launch.dtype} is closer."
        )
    return "\n".join(f"- {line}" for line in [*lines, *map(plain, told.remarks)])


def _made(variant: Variant) -> str:
    notes = "\n".join(f"- {plain(note)}" for note in variant.notes)
    said = "`recipe.json` is for the workbench; `python recipe.py [task]` applies it again."
    return "\n\n".join(filter(None, [fenced(repr(variant.recipe), "python"), said, notes]))
