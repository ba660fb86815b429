"""A learner's step checked: the contract of every step, the reference's weights and figures, and its idea's worth."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from workbench.core import estimate
from workbench.core.errors import Cancelled, InvalidInput, OutOfMemory, WorkbenchError
from workbench.core.estimate import Estimate
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.measurement.likelihood import Likelihood, likelihoods, task_spans
from workbench.step import Step
from workbench.tasks.task import Task, Text
from workbench.teaching import contract
from workbench.teaching.blame import blame
from workbench.teaching.calculator import Calculator, check_calculator
from workbench.teaching.found import Check, Finding, Number, found
from workbench.teaching.lora import LoRAParts
from workbench.teaching.mistakes import mistaken
from workbench.teaching.weights import WITHIN, first_apart
from workbench.variant import Variant

Steps = Step | type[Step]
HOPELESS = ("works", "parent untouched")  # without these there is nothing to measure: it would damage all of the model


@watched
def check(
    step: Steps | Calculator | type[Calculator],
    variant: Variant,
    task: Task | Text | None = None,
    *,
    reference: Step | None = None,
    ablation: Steps | None = None,
    guess: float | None = None,
    examples: int | None = None,
    progress: Progress | None = None,
) -> Check:
    """Check a step that somebody wrote, or their predictions; says what is right, and names what is wrong.

    The contract of every step is tried on the variant with a tenth of its blocks: documented, bounded, read back from
    JSON, the parent untouched, the same again, nothing changed at neutral strength, nothing left by a cancel. There,
    too, its weights are compared with the reference's: nine of ten output rows of every layer within 1 % of what the
    reference changes in them. Where they differ, known mistakes are tried, and the one that gives the same weights is
    named. Then both are applied to all of the variant, and their perplexities must agree within 1 %; the reference's,
    measured here, is the expected number. The ablation is the same step without its idea: its perplexity says what the
    idea is worth on this text.

    Args:
        step: an instance; or its class, which is then given those knobs of the reference that it has. A `Calculator`
            is compared with what the workbench counts on this variant, and needs nothing else.
        variant: what it is applied to.
        task: for its calibration or training, and for the perplexity; of questions, that of their answers.
        reference: a step of the workbench that should give the same.
        ablation: a step, or its class, that lacks the idea; wanted where there is a reference.
        guess: the perplexity that was expected before it was measured.
        examples: how many test examples or windows are scored; all by default.
        progress: cancel and progress.

    Raises:
        InvalidInput: it is neither step nor calculator, or the reference cannot be applied to the variant.
        OutOfMemory: the variants do not fit at once.
        Cancelled: the progress was cancelled.
    """
    progress = progress or Progress()
    kind = step if isinstance(step, type) else type(step)
    if issubclass(kind, Calculator):
        return check_calculator(step, variant, progress)  # type: ignore[arg-type]
    if not issubclass(kind, Step):
        raise InvalidInput(f"check() takes a step or a calculator, or the class of one, not {kind.__name__}.")
    findings = list(contract.said(kind))
    try:
        mine = _made(step, reference)
    except Exception as error:
        return found(kind.__name__, [*findings, contract.refused(kind, error)])
    findings += [contract.recorded(mine), *_tried(mine, variant, task, reference, progress)]
    if any(each.point in HOPELESS and not each.passed for each in findings):
        return found(kind.__name__, findings)
    if task is None:
        return found(kind.__name__, findings, notes=["Pass a task or a text to measure it, too."])
    more, numbers = _measured(mine, variant, task, reference, ablation, examples, progress)
    notes = _guessed(guess, numbers)
    return found(kind.__name__, [*findings, *more], numbers, notes)


def _made(step: object, reference: Step | None) -> Step:
    """A step; of a class, with the reference's knobs."""
    if isinstance(step, Step):
        return step
    assert isinstance(step, type)
    assert issubclass(step, Step)
    theirs = {} if reference is None else {name: getattr(reference, name) for name in type(reference).model_fields}
    return step(**{name: value for name, value in theirs.items() if name in step.model_fields})


def _tried(
    mine: Step, variant: Variant, task: Task | Text | None, reference: Step | None, progress: Progress
) -> Iterator[Finding]:
    """What is seen on the shortened variant."""
    start, step = contract.shortened(variant, task), contract.quick(mine)
    twin = None if reference is None else contract.quick(reference)
    before = contract.hashes(start)
    try:
        child = start.apply(step, task, progress)
        yield from contract.kept(step, start, before, child, task, twin, progress)
    except (Cancelled, OutOfMemory):
        raise
    except Exception as error:
        yield contract.refused(type(mine), error)
        return
    if twin is not None:
        yield _same_weights(step, child, start, task, twin, progress)


def _same_weights(
    step: Step, child: Variant, start: Variant, task: Task | Text | None, reference: Step, progress: Progress
) -> Finding:
    """Whether the weights are the reference's; if not, whose they are."""
    expected = start.apply(reference, task, progress)
    point = "weights"
    try:
        first = first_apart(child, expected, start)
    except AttributeError as error:
        return Finding(point, False, f"A layer is missing: {error}.")
    if first is None:
        return Finding(point, True, f"As those of {reference!r}, within 1 % of what it changes.")
    if isinstance(step, LoRAParts) and bool(step.start(step.rank).any()):
        return Finding(point, False, "B is not zero at the start: an adapter that has learned nothing must do nothing.")
    for says, wrong in mistaken(reference):
        progress.check()
        try:
            same = first_apart(child, start.apply(wrong, task, progress), start) is None
        except (Cancelled, OutOfMemory):
            raise
        except WorkbenchError:  # this mistake cannot even be applied here
            continue
        if same:
            return Finding(point, False, says)
    zeros = f" {first.zeros[0]:.1%} of its weights are 0, not {first.zeros[1]:.1%}." if max(first.zeros) > 0.01 else ""
    says = f"{first.path} differs first: {first.rows:.0%} of its output rows are not those of {reference!r}.{zeros}"
    return Finding(point, False, says)


def _measured(
    mine: Step,
    variant: Variant,
    task: Task | Text,
    reference: Step | None,
    ablation: Steps | None,
    examples: int | None,
    progress: Progress,
) -> tuple[list[Finding], list[Number]]:
    """The perplexities of all of the variant, with the step and its rivals, and what they say."""
    made = {"before": variant}
    if reference is not None:
        made["expected"] = variant.apply(reference, task, progress)
    findings, lacking = [], None
    try:
        made["yours"] = variant.apply(mine, task, progress)
        lacking = None if ablation is None else _made(ablation, reference or mine)
        if lacking is not None:
            findings += _by_seed(lacking, variant, task, progress)
            made["without the idea"] = variant.apply(lacking, task, progress)
    except (Cancelled, OutOfMemory):
        raise
    except Exception as error:
        kind = type(mine) if "yours" not in made else ablation if isinstance(ablation, type) else type(ablation)
        findings.append(Finding("ablation" if "yours" in made else "works", False, blame(kind, error)))
    named = [replace(each, name=whose) for whose, each in made.items()]
    spans = [task_spans(each, task, examples) for each in named]
    read = dict(zip(made, likelihoods(named, spans, progress), strict=True))
    numbers = [Number(whose, "perplexity", _perplexity(each)) for whose, each in read.items()]
    if reference is not None and "yours" in read:
        findings.append(_same_number(read, reference))
    if lacking is not None and "without the idea" in read:
        findings.append(_idea(read, lacking))
    elif reference is not None and ablation is None:
        how = "An ablation is still wanted: pass `ablation=`, a step without the idea, as one by chance."
        findings.append(Finding("ablation", False, how))
    return findings, numbers


def _by_seed(lacking: Step, variant: Variant, task: Task | Text, progress: Progress) -> list[Finding]:
    """What is wrong with an ablation that draws lots: that they are others each time."""
    start, step = contract.shortened(variant, task), contract.quick(lacking)
    again = contract.repeatable(step, start, start.apply(step, task, progress), task, progress)
    return [] if again.passed else [Finding("ablation", False, again.says)]


def _perplexity(read: Likelihood) -> Estimate:
    return estimate.exponential(estimate.ratio_of_sums(read.nll, read.tokens, "nats"))


def _moved(after: Likelihood, before: Likelihood) -> Estimate:
    """How many times as large a perplexity is, windows paired."""
    change = [a - b for a, b in zip(after.nll, before.nll, strict=True)]
    return estimate.exponential(estimate.ratio_of_sums(change, before.tokens, "nats"))


def _same_number(read: dict[str, Likelihood], reference: Step) -> Finding:
    ratio = _moved(read["yours"], read["expected"])
    near = math.isfinite(ratio.value) and abs(ratio.value - 1) <= WITHIN
    yours, theirs = (_perplexity(read[whose]) for whose in ("yours", "expected"))
    says = f"{yours.value:.2f}, and {theirs.value:.2f} is expected: the perplexity with {reference!r} here."
    return Finding("number", near, says if near else f"{says} That is {ratio.value - 1:+.1%}.")


def _idea(read: dict[str, Likelihood], lacking: Step) -> Finding:
    """What the idea is worth here; an ablation passes if it takes something away."""
    ratio = _moved(read["without the idea"], read["yours"])
    if read["without the idea"].nll == read["yours"].nll:
        return Finding("ablation", False, f"{lacking!r} gives the very same: an ablation lacks the idea.")
    ends = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times the perplexity"
    if ratio.covers(1.0):
        return Finding("ablation", True, f"Without the idea {ends}: no measurable difference on {ratio.n} texts.")
    verdict = "the idea matters" if ratio.value > 1 else "the idea does harm here"
    return Finding("ablation", True, f"Without the idea {ends}: {verdict}.")


def _guessed(guess: float | None, numbers: Sequence[Number]) -> list[str]:
    known = {each.whose: each for each in numbers}
    measured = known.get("expected") or known.get("yours")
    return [] if guess is None or measured is None else [f"You guessed {guess:,.4g}; it is {measured}."]
