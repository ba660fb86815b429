"""What a step would do to a variant, within seconds: a short answer and a few scored tokens of a throw-away result.

Meant for a slider: what depends on the variant alone is computed once and kept as long as the variant.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.answering.request import Request
from workbench.core.progress import Progress
from workbench.layers.step import LayerStep
from workbench.measurement.likelihood import answer_span, window_span
from workbench.measurement.memory import bits_per_weight
from workbench.models.packed import GroupLinear, dense_weight, linear_layers, replace_module
from workbench.runtime.forward import memory_guard
from workbench.runtime.reader import Span
from workbench.step import Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

TOKENS = 128  # of text that is read; a task's examples are read whole, at least one
ANSWER = 16  # new tokens
PROMPT = "What is a lobster?"


@dataclass(frozen=True)
class Preview:
    """A variant before and after a step, on very little: to turn a knob by, not to report.

    Attributes:
        text: the first tokens of the answer after the step, greedy.
        base_text: the same before it.
        zeros: share of zeros in the layers that the step changes; None where it packs them, or changes none.
        bits_per_weight: stored bits over all weights.
        seconds: time that all of it took.
        kl: divergence from before, in nats a token; None without a task.
        perplexity: of the task's gold text after the step; None without a task.
        base_perplexity: the same before it.
        tokens: how many tokens stand behind these three.
    """

    text: str
    base_text: str
    zeros: float | None
    bits_per_weight: float
    seconds: float
    kl: float | None = None
    perplexity: float | None = None
    base_perplexity: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class _Reading:
    """What a variant makes of the task's text: log-probabilities ``(tokens, vocabulary)`` of every next token."""

    task: str
    spans: Sequence[Span]
    targets: Tensor
    logs: Tensor


_answers: WeakKeyDictionary[Variant, dict[str | Request, str]] = WeakKeyDictionary()
_readings: WeakKeyDictionary[Variant, _Reading] = WeakKeyDictionary()


@torch.no_grad()
def preview(
    variant: Variant,
    step: Step,
    task: Task | Text | None = None,
    prompt: str | Request = PROMPT,
    progress: Progress | None = None,
) -> Preview:
    """Apply a step, ask, score, and drop the result.

    Blocks are not calibrated on the changed blocks before them, even if the step says so: that takes too long here.

    Args:
        variant: where the step starts from.
        step: what is tried.
        task: what the step calibrates on, and what is scored: the start of its test split.
        prompt: what is asked.
        progress: a cancel takes effect within one layer or one token.

    Raises:
        InvalidInput: the step does not fit the variant, needs a task and got none, or the prompt is empty or too long.
        Cancelled: the progress was cancelled.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    reading = _reading(variant, task) if task else None
    said = _answers.setdefault(variant, {})
    if prompt not in said:
        said[prompt] = _answer(variant, prompt, progress)
    made = variant.apply(at_once(step), task, progress)
    with memory_guard(step.label):
        layers = step.layers(variant) if isinstance(step, LayerStep) else []
        bits, zeros = bits_per_weight(made), _share_of_zeros(made, layers)
        if made.model is not variant.model:
            _unpack(made.model)
        found = _compare(reading, made) if reading else {}
    text = _answer(made, prompt, progress)
    seconds = time.perf_counter() - started
    return Preview(text, said[prompt], zeros=zeros, bits_per_weight=bits, seconds=seconds, **found)


def at_once(step: Step) -> Step:
    """The step on statistics of the unchanged model, which are taken once for all settings."""
    return step.model_copy(update={"sequential": False}) if getattr(step, "runs_changed_blocks", False) else step


def _answer(variant: Variant, prompt: str | Request, progress: Progress) -> str:
    """The first tokens of a greedy answer."""
    pieces = variant.stream(prompt, max_new_tokens=ANSWER, temperature=0.0)
    return "".join(piece.text for piece in progress.track("Answering", pieces, ANSWER))


def _reading(variant: Variant, task: Task | Text) -> _Reading:
    known = _readings.get(variant)
    if known is None or known.task != task.fingerprint:
        spans = _spans(variant, task)
        targets = torch.tensor([token for span in spans for token in span.target], device=variant.device)
        known = _readings[variant] = _Reading(task.fingerprint, spans, targets, _log_chances(variant, spans))
    return known


def _spans(variant: Variant, task: Task | Text) -> list[Span]:
    """The start of the test split, up to so many tokens."""
    room = min(TOKENS, variant.context_length)
    if isinstance(task, Text):
        windows = task.windows(variant.tokenizer, "test")
        cut = [window[:room] for window in windows[: max(1, room // task.window)]]
        return [window_span(variant, window) for window in cut]
    spans: list[Span] = []
    for example in task.test:
        span = answer_span(variant, variant.encode(Request.example(task, example)), example.answer)
        room -= len(span.ids)
        if spans and room < 0:
            break
        spans.append(span)
    return spans


def _log_chances(variant: Variant, spans: Sequence[Span]) -> Tensor:
    """Log-probabilities ``(target tokens of all spans, vocabulary)``, in float32."""
    return variant.engine.read(variant.model, spans, variant.name).logs(spans)


def _compare(before: _Reading, made: Variant) -> dict[str, Any]:
    """Divergence, and the perplexities of both."""
    logs = _log_chances(made, before.spans)
    kl = (before.logs.exp() * (before.logs - logs)).sum(dim=-1).double().mean()
    return {
        "kl": max(float(kl), 0.0),  # rounding can leave a KL of zero at -1e-7; NaN stays NaN
        "perplexity": _perplexity(logs, before.targets),
        "base_perplexity": _perplexity(before.logs, before.targets),
        "tokens": len(before.targets),
    }


def _perplexity(logs: Tensor, targets: Tensor) -> float:
    nll = -float(logs.gather(-1, targets[:, None]).double().mean())
    return math.exp(min(nll, 700.0))


def _share_of_zeros(made: Variant, paths: Sequence[str]) -> float | None:
    layers = [made.model.get_submodule(path) for path in paths]
    if not layers or any(isinstance(layer, GroupLinear) for layer in layers):
        return None
    weights = [dense_weight(layer) for layer in layers]
    return sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)


def _unpack(model: PreTrainedModel) -> None:
    """Make dense, once, the layers of a copy of a model that would be unpacked for every token."""
    for path, layer in list(linear_layers(model)):
        if isinstance(layer, GroupLinear) and layer.kernel is None:
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(layer.dequantize().to(model.dtype), requires_grad=False)
            if layer.bias is not None:
                dense.bias = nn.Parameter(layer.bias, requires_grad=False)
            replace_module(model, path, dense)
