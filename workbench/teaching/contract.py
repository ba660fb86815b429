"""What every step keeps, whoever wrote it, tried on a shortened model: a sentence for each point that it does not."""

import gc
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, get_origin

import annotated_types
import torch
from pydantic.fields import FieldInfo

from workbench.core.errors import Cancelled, InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.recipe import REGISTRY, Recipe, step_from_json
from workbench.runtime.trial import some_tokens
from workbench.step import Step
from workbench.steps import prune
from workbench.tasks.task import Task, Text
from workbench.teaching.blame import blame
from workbench.teaching.found import Finding
from workbench.variant import Variant, live

WORDS = 10  # of the explanation behind a docstring's first line, at least
TOKENS = 32  # that the shortened model reads to see that its numbers are numbers
SHORT = {"epochs": 1e-6, "precision": "float32", "keep": "last"}  # one training step, the same on every machine
AFTER = 2  # reports, after which work is cancelled


class Stopped(Progress):
    """Progress whose cancel button is pressed after a number of reports."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def advance(self, units: int = 1) -> None:
        """Report, until it is cancelled."""
        self.after -= 1
        if self.after <= 0:
            self.cancel()
        super().advance(units)


def shortened(variant: Variant, task: Task | Text | None) -> Variant:
    """The variant with a tenth of its decoder blocks, which share its tensors; as it is where none can go."""
    with suppress(WorkbenchError):
        return prune.DropBlocks(share=0.9, order="last").apply(
            variant, task, Progress()
        )  # which needs no data for that
    return variant


def quick(step: Step) -> Step:
    """The same step; one that trains does so for a single step."""
    changed = {name: value for name, value in SHORT.items() if name in type(step).model_fields}
    return step.model_copy(update=changed) if changed else step


def said(kind: type[Step]) -> Iterator[Finding]:
    """What a class says of itself."""
    summary, _, rest = (kind.__doc__ or "").strip().partition("\n\n")
    own = bool(summary) and kind.__doc__ not in [each.__doc__ for each in kind.__mro__[1:]]
    right = own and summary.endswith(".") and "\n" not in summary
    if not right:
        yield Finding("documented", False, "Its docstring begins with one line that ends in a full stop: the tooltip.")
    elif len(rest.split()) < WORDS:
        yield Finding("documented", False, "Behind the docstring's first line, say when it helps and what it costs.")
    else:
        yield Finding("documented", True, summary)
    sourced = re.fullmatch(r"https://\S+", kind.paper) is not None
    how = kind.paper if sourced else 'Give it `paper: ClassVar[str] = "https://..."`: its source, which registers it.'
    yield Finding("sourced", sourced, how)
    wrong = [what for name, field in kind.model_fields.items() if (what := _unbounded(name, field))]
    wrong = wrong or list(_unchecked(kind))
    yield Finding("knobs", not wrong, wrong[0] if wrong else f"{len(kind.model_fields)} described and bounded.")


def _unbounded(name: str, field: FieldInfo) -> str:
    """What a field lacks to be a knob."""
    kinds = {type(each) for each in field.metadata}
    if not (field.description or "").strip().endswith("."):
        return f"Describe the knob '{name}' in a sentence: Field(..., description=\"...\")."
    if field.is_required():
        return f"Give the knob '{name}' a default: a panel needs a first value."
    if field.annotation in (int, float):
        low, high = {annotated_types.Ge, annotated_types.Gt}, {annotated_types.Le, annotated_types.Lt}
        return "" if kinds & low and kinds & high else f"Bound the knob '{name}' on both sides: Field(..., ge=, le=)."
    if field.annotation is str:
        return "" if annotated_types.MaxLen in kinds else f"Bound the length of '{name}': Field(..., max_length=)."
    if field.annotation is bool or get_origin(field.annotation) is Literal:
        return ""
    return f"The knob '{name}' is an int, a float, a str, a bool or a Literal, so that a panel can show it."


def _unchecked(kind: type[Step]) -> Iterator[str]:
    """Knobs that take a value beyond their bounds."""
    for name, field in kind.model_fields.items():
        for bound in field.metadata:
            beyond: Any
            match bound:
                case annotated_types.Ge(ge=least):
                    beyond = least - 1  # type: ignore[operator]
                case annotated_types.Le(le=most):
                    beyond = most + 1  # type: ignore[operator]
                case annotated_types.Gt(gt=beyond) | annotated_types.Lt(lt=beyond):
                    pass
                case annotated_types.MaxLen(max_length=longest):
                    beyond = "x" * (longest + 1)
                case _:
                    continue
            try:
                kind(**{name: beyond})
            except InvalidInput:
                continue
            yield f"The knob '{name}' takes {beyond!r}, which is beyond its bounds."


def recorded(step: Step) -> Finding:
    """Whether a recipe with it can be written and read back."""
    name = type(step).full_name()
    if REGISTRY.get(name) is not type(step):
        return Finding("JSON", False, f"'{name}' is not registered, or defined anew since: give its class a `paper`.")
    again = step_from_json(step.to_json())
    same = again == step and Recipe.from_json(Recipe([step]).to_json()) == Recipe([step])
    return Finding("JSON", same, "A recipe with it is read back as it was." if same else "It is read back otherwise.")


def kept(
    step: Step,
    start: Variant,
    before: dict[str, str],
    child: Variant,
    task: Task | Text | None,
    twin: Step | None,
    progress: Progress,
) -> Iterator[Finding]:
    """What a step keeps when it is applied.

    Args:
        step: applied once already.
        start: what it was applied to.
        before: hashes of its tensors, taken before that.
        child: what came of it.
        task: the data.
        twin: a step of the same knobs, of which is known where it changes nothing.
        progress: cancel and progress.
    """
    finite = _finite(child)
    yield Finding("works", finite, "The model answers." if finite else "What it makes of the model are not numbers.")
    named = child.recipe == start.recipe.then(step)
    yield Finding("recipe", named, repr(step) if named else "Its variant is made by `variant.derive(self, model)`.")
    yield repeatable(step, start, child, task, progress)
    yield from _neutral(step, start, task, twin, progress)
    yield _cancelled(step, start, task)
    changed = [name for name, each in hashes(start).items() if before.get(name) != each]
    yield Finding(
        "parent untouched",
        not changed,
        f"It writes into the parent's '{changed[0]}': make a new tensor, and load the model again, which it damaged."
        if changed
        else "The parent is as it was.",
    )


def repeatable(step: Step, start: Variant, child: Variant, task: Task | Text | None, progress: Progress) -> Finding:
    """Whether a step gives the same once more."""
    again = hashes(start.apply(step, task, progress)) == hashes(child)
    how = "The same tensors again." if again else "Applied twice it differs: draw from a generator with a seed."
    return Finding("repeatable", again, how)


def _finite(variant: Variant) -> bool:
    ids = torch.tensor([some_tokens(variant.model, TOKENS)], device=variant.device)
    with torch.no_grad():
        return bool(torch.isfinite(variant.model(ids).logits).all())


def _neutral(
    step: Step, start: Variant, task: Task | Text | None, twin: Step | None, progress: Progress
) -> Iterator[Finding]:
    """At its neutral strength a step changes nothing; which that is, is tried at the lower ends of the knobs."""
    for name, value in neutral_knobs(twin or step):
        if name not in type(step).model_fields:
            continue
        child = start.apply(step.model_copy(update={name: value}), task, progress)
        ids = torch.tensor([some_tokens(start.model, TOKENS)], device=start.device)
        with torch.no_grad():
            same = torch.equal(child.model(ids).logits, start.model(ids).logits)
        says = f"With {name}={value} nothing changes." if same else f"With {name}={value} it must change nothing."
        yield Finding("neutral", same, says)


def neutral_knobs(step: Step) -> Iterator[tuple[str, float]]:
    """Knobs, and the lower end at which a step says that it changes nothing."""
    for name, field in type(step).model_fields.items():
        for bound in field.metadata:
            if isinstance(bound, annotated_types.Ge):
                try:
                    turned: Any = step.model_copy(update={name: bound.ge})
                except InvalidInput:
                    continue
                if getattr(turned, "neutral", False):
                    yield name, turned.model_dump()[name]


def _cancelled(step: Step, start: Variant, task: Task | Text | None) -> Finding:
    """A cancel is followed, and leaves nothing."""
    gc.collect()
    before, owned = len(live()), start.owned_bytes
    progress = Stopped(AFTER)
    try:
        start.apply(step, task, progress)
    except Cancelled:
        pass
    else:
        if progress.after <= 0:
            return Finding("cancel", False, "It goes on when cancelled: let Cancelled pass.")
    gc.collect()
    if (len(live()), start.owned_bytes) != (before, owned):
        return Finding("cancel", False, "A cancel leaves a variant behind: keep none outside of `apply`.")
    return Finding("cancel", True, "A cancel leaves nothing behind.")


def hashes(variant: Variant) -> dict[str, str]:
    """A hash of every tensor, by name."""
    state = dict(variant.model.state_dict()) | dict(variant.model.named_buffers())
    flat = {name: each.detach().contiguous().view(-1).view(torch.uint8).cpu() for name, each in state.items()}
    return {name: hashlib.sha256(each.numpy()).hexdigest() for name, each in flat.items()}


def refused(kind: type[Step], error: Exception) -> Finding:
    """A step that cannot be applied."""
    return Finding("works", False, blame(kind, error))
