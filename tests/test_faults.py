"""Memory that runs out in the middle of a step takes nothing down with it."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from test_contract import alive, hashes
from torch.overrides import TorchFunctionMode

import workbench as wb
from workbench import Progress
from workbench.core.errors import OutOfMemory
from workbench.steps import prompt, quantize

STEPS = [quantize.NF4(), quantize.Int8(), quantize.Int8Dynamic(), quantize.LLMInt8()]


class Full(TorchFunctionMode):
    """The next operation on a tensor fails as on a full device, once armed."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.armed, self.raised = error, False, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if self.armed and any(isinstance(each, torch.Tensor) for each in args):
            self.armed = False
            self.raised += 1
            raise self.error
        return function(*args, **(kwargs or {}))


class Armed(Progress):
    """Arms the fault once two layers are packed, so that the third meets it."""

    def __init__(self, full: Full) -> None:
        super().__init__()
        self.full = full

    def advance(self, units: int = 1) -> None:
        super().advance(units)
        self.full.armed = self.done >= 2


ERRORS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total ..."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you"),
    "python": lambda: MemoryError(),
}


@pytest.fixture
def others(base: wb.Variant) -> list[wb.Variant]:
    return [base, base.apply(prompt.System(text="Hm.")), base.apply(quantize.FP4())]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.label)
@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_in_a_step_changes_nothing(others: list[wb.Variant], step: wb.Step, kind: str) -> None:
    base = others[0]
    base.apply(step).close()  # the first time pays for caches
    before, answers = [hashes(each) for each in others], [each.generate("Rain", max_new_tokens=3) for each in others]
    there, owned = alive(), [each.owned_bytes for each in others]
    full = Full(ERRORS[kind]())
    progress = Armed(full)
    try:
        with full:
            base.apply(step, progress=progress)
        raise AssertionError("the fault was not met")
    except OutOfMemory as error:
        message = str(error)
    assert full.raised == 1
    assert progress.done == 2
    assert step.label in message
    assert "close a variant" in message
    assert "\n" not in message
    full.error = None
    assert (alive(), [each.owned_bytes for each in others]) == (there, owned)
    assert [hashes(each) for each in others] == before
    assert [each.generate("Rain", max_new_tokens=3).token_ids for each in others] == [a.token_ids for a in answers]
    assert base.apply(step).generate("Rain", max_new_tokens=1).token_ids  # and with memory again, it works


def test_other_errors_are_not_taken_for_a_full_device(base: wb.Variant) -> None:
    full = Full(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), full:
        base.apply(quantize.Int8(), progress=Armed(full))


def test_out_of_memory_while_answering_leaves_the_variant_usable(base: wb.Variant) -> None:
    wanted = base.generate("Rain", max_new_tokens=4).token_ids
    full = Full(ERRORS["cuda"]())
    stream = base.stream("Rain", max_new_tokens=4)
    next(stream)
    full.armed = True
    with pytest.raises(OutOfMemory, match="close a variant"), full:
        next(stream)
    assert base.generate("Rain", max_new_tokens=4).token_ids == wanted


def test_a_closed_variant_returns_its_tensors(base: wb.Variant) -> None:
    child = base.apply(quantize.Int8())
    packed = [weakref.ref(m.weight) for m in child.model.modules() if type(m).__name__ == "Int8Linear"]
    memory = alive()[1]
    assert len(packed) == 15
    owned = child.owned_bytes
    child.close()
    gc.collect()
    assert not any(reference() is not None for reference in packed)
    assert alive()[1] == memory - owned


def test_a_dropped_variant_returns_its_tensors(base: wb.Variant) -> None:
    before = alive()
    child = base.apply(quantize.NF4())
    assert alive()[1] > before[1]
    del child
    assert alive() == before
