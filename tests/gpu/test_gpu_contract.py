"""What every step keeps, on a GPU and in the type that is usual there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import IDS, OTHERS, STEPS, attempt, hashes, ready

import workbench as wb
from workbench.answering.answers import settings_of
from workbench.models.sharing import _all_tensors
from workbench.step import RequestStep
from workbench.steps import runtime

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture
def data(tiny_task: wb.Task, tiny_text: wb.Text) -> list[wb.Task | wb.Text | None]:
    return [tiny_task, tiny_text]


# What rewrites requests touches no model, and needs no second one.
CASES = [
    (name, step) for name in ("llama", "gpt2") for step in STEPS if name == "llama" or not issubclass(step, RequestStep)
]


@pytest.mark.parametrize(
    ("architecture", "step"), CASES, ids=lambda each: each if isinstance(each, str) else each.full_name()
)
def test_works_and_leaves_the_parent_untouched(
    step: type[wb.Step], architecture: str, folders: dict[str, Path], data: list[Any], tmp_path: Path
) -> None:
    base = wb.load(folders[architecture], device="cuda")
    before, answer = hashes(base), base.generate("Rain", max_new_tokens=3).token_ids
    start = ready(step, base, data)
    child = attempt(start, step(), data)
    if child is not None:
        kept = {"cpu", "meta"} if step is runtime.Offload else set()  # elsewhere, and what stands for it
        assert {each.device.type for each in _all_tensors(child.model)} == {"cuda"} | kept
        tokens = child.generate("What is a lobster?", max_new_tokens=3).token_ids
        assert 1 <= len(tokens) <= settings_of(child, child.decoding.but(max_new_tokens=3)).max_new_tokens
        with torch.no_grad():
            logits = child.model(IDS.cuda()).logits
        assert torch.isfinite(logits).all()
        assert step().forecast(start).weight_bytes > 0
        folder = child.save(tmp_path / "export")
        again = wb.load(folder, device="cuda")
        assert {each.device.type for each in _all_tensors(again.model)} == {"cuda"}
        assert again.total_bytes == child.total_bytes
        with torch.no_grad():
            assert torch.equal(again.model(IDS.cuda()).logits, logits)
        wb.load(folder, device="cpu").generate("Rain", max_new_tokens=3)  # on a machine without a GPU
        child.close()
    else:
        assert architecture != "llama" or step is runtime.LlamaCpp, "all but llama.cpp work on a Llama"
    OTHERS.clear()
    assert hashes(base) == before
    assert base.generate("Rain", max_new_tokens=3).token_ids == answer
