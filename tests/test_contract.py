"""What every step keeps, whoever wrote it: read from `families()`, so a new step is tested by being there."""

import gc
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
import torch
from conftest import ARCHITECTURES, settle
from torch._subclasses.fake_tensor import FakeTensor

import workbench as wb
from workbench import Progress, Recipe
from workbench.answering.answers import settings_of
from workbench.core.errors import Cancelled, InvalidInput, WorkbenchError
from workbench.recipe import step_from_json
from workbench.steps import families, finetune, prune
from workbench.teaching.contract import Stopped

STEPS = [step for steps in families().values() for step in steps]
IDS = torch.arange(3, 40)[None]
ON_ADAPTERS = (finetune.Strength, finetune.Combine, finetune.Fuse)
OTHERS: list[wb.Variant] = []  # what must stay alive while a step is tried


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    OTHERS.clear()


every_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.full_name())
every_model = pytest.mark.parametrize(
    ("architecture", "dtype"), [*((name, "float32") for name in ARCHITECTURES), ("llama", "bfloat16")]
)  # bfloat16 is usual on a GPU


def hashes(variant: wb.Variant) -> dict[str, str]:
    state = dict(variant.model.state_dict()) | dict(variant.model.named_buffers())
    flat = {name: tensor.detach().contiguous().view(-1).view(torch.uint8).cpu() for name, tensor in state.items()}
    return {name: hashlib.sha256(each.numpy().tobytes()).hexdigest() for name, each in flat.items()}


def alive() -> tuple[int, int]:
    """How many variants are alive, and the bytes behind every tensor that is."""
    gc.collect()
    variants, storages = 0, {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and not issubclass(type(each), FakeTensor):  # a trace's have no memory
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        variants += issubclass(type(each), wb.Variant)
    return variants, sum(storages.values())


@pytest.fixture
def settled() -> None:
    """Nothing is counted but what the test itself makes."""
    settle()


@pytest.fixture
def data(tiny_task: wb.Task, tiny_text: wb.Text) -> list[wb.Task | wb.Text | None]:
    return [tiny_task, tiny_text]


def attempt(base: wb.Variant, step: wb.Step, data: list[Any], progress: Progress | None = None) -> wb.Variant | None:
    """The child, with the first kind of data that the step takes; None when it refuses this model in a sentence."""
    for task in data if step.needs_data else [None]:
        try:
            return base.apply(step, task, progress)
        except Cancelled:
            raise
        except WorkbenchError as refused:
            message = str(refused)
        assert message.endswith(".")
        assert "\n" not in message
    return None


def ready(step: type[wb.Step], base: wb.Variant, data: list[Any]) -> wb.Variant:
    """A variant that the step can start from: with an adapter where the step is about adapters, or a student."""
    if step.family() == "distil":
        return base.apply(prune.DropBlocks(share=0.5, order="last"), data[1])
    if step is finetune.Combine:
        OTHERS[:] = [base.apply(finetune.LoRA(seed=1), data[0])]
    return base.apply(finetune.LoRA(), data[0]) if step in ON_ADAPTERS else base


@every_step
def test_documented_and_sourced(step: type[wb.Step]) -> None:
    assert step.__doc__
    summary, _, rest = step.__doc__.strip().partition("\n\n")
    assert summary.endswith(".")
    assert "\n" not in summary.strip(), "the first line is the tooltip"
    assert len(rest.split()) >= 10, "the rest says when it helps and what it costs"
    assert re.fullmatch(r"https://\S+", step.paper)
    assert step.__doc__ != wb.Step.__doc__


@every_step
def test_every_knob_is_described_and_bounded(step: type[wb.Step]) -> None:
    for name, field in step.model_fields.items():
        where = f"{step.__name__}.{name}"
        assert field.description, where
        assert field.description.strip().endswith("."), where
        assert not field.is_required(), f"{where}: a panel needs a first value"
        kinds = {type(each) for each in field.metadata}
        if field.annotation in (int, float):
            assert kinds & {annotated_types.Ge, annotated_types.Gt}, where
            assert kinds & {annotated_types.Le, annotated_types.Lt}, where
        elif field.annotation is str:
            assert annotated_types.MaxLen in kinds, where
        else:
            assert field.annotation is bool or get_origin(field.annotation) is Literal, where
            assert field.annotation is bool or get_args(field.annotation), where


@every_step
def test_numbers_beyond_their_bounds_are_refused(step: type[wb.Step]) -> None:
    for name, field in step.model_fields.items():
        for bound in field.metadata:
            beyond: Any
            match bound:
                case annotated_types.Ge(ge=least):
                    beyond = least - 1
                case annotated_types.Le(le=most):
                    beyond = most + 1
                case annotated_types.Gt(gt=beyond) | annotated_types.Lt(lt=beyond):
                    pass
                case annotated_types.MaxLen(max_length=most):
                    beyond = "x" * (most + 1)
                case _:
                    continue
            with pytest.raises(InvalidInput, match=name):
                step(**{name: beyond})


@every_step
def test_data_is_asked_for_before_any_work(step: type[wb.Step], base: wb.Variant, data) -> None:
    if step.needs_data:
        with pytest.raises(wb.WorkbenchError, match="pass a task"):
            base.apply(step())
    else:
        start = ready(step, base, data)
        assert start.apply(step()) is not start


@every_step
@every_model
def test_works_or_refuses_and_leaves_the_parent_untouched(
    step: type[wb.Step], architecture: str, dtype: str, folders: dict[str, Path], data, tmp_path
) -> None:
    base = wb.load(folders[architecture], device="cpu", dtype=dtype)
    before, answer = hashes(base), base.generate("Rain", max_new_tokens=3).token_ids
    start = ready(step, base, data)
    child = attempt(start, step(), data)
    if child is not None:
        tokens = child.generate("What is a lobster?", max_new_tokens=3)
        assert 1 <= len(tokens.token_ids) <= settings_of(child, child.decoding.but(max_new_tokens=3)).max_new_tokens
        assert child.parent is start
        assert child.recipe == start.recipe.then(step()) == Recipe.from_json(child.recipe.to_json())
        assert step_from_json(step().to_json()) == step()
        with torch.no_grad():
            assert torch.isfinite(child.model(IDS).logits).all()
        assert child.owned_bytes <= child.total_bytes
        forecast = step().forecast(start)
        assert forecast.weight_bytes > 0

        again = wb.load(child.save(tmp_path / "export"), device="cpu")
        assert again.recipe == child.recipe
        assert again.total_bytes == child.total_bytes
        with torch.no_grad():
            assert torch.equal(again.model(IDS).logits, child.model(IDS).logits)
        assert again.generate("What is a lobster?", max_new_tokens=3).token_ids == tokens.token_ids
        child.close()
    assert hashes(base) == before
    assert base.generate("Rain", max_new_tokens=3).token_ids == answer
    assert base.owned_bytes == base.total_bytes


@every_step
def test_the_same_recipe_gives_the_same_tensors(step: type[wb.Step], base: wb.Variant, data) -> None:
    start = ready(step, base, data)
    children = [attempt(start, step(), data) for _ in range(2)]
    assert all(children), "every step works on a Llama"
    assert hashes(children[0]) == hashes(children[1])


@every_step
@pytest.mark.usefixtures("settled")
def test_a_cancel_leaves_nothing_behind(step: type[wb.Step], base: wb.Variant, data) -> None:
    start = ready(step, base, data)
    attempt(start, step(), data)  # the first time pays for caches
    weights, before, owned = hashes(base), alive(), base.owned_bytes
    for after in (1, 3):
        progress = Stopped(after)
        try:
            attempt(start, step(), data, progress)
            assert progress.after > 0, "a cancelled step went on to its end"
        except Cancelled:
            assert progress.cancelled
        assert (alive(), base.owned_bytes) == (before, owned), after
        assert hashes(base) == weights, after


@every_step
def test_a_cancelled_progress_starts_no_step(step: type[wb.Step], base: wb.Variant, data) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        base.apply(step(), data[0], progress)
