"""Every causal architecture of transformers that can be made small: right or refused, none wrong.

Takes some minutes, so it is run when asked for, with the file that its table is written to:
`WORKBENCH_ARCHITECTURES=benchmarks/results/architectures.md pytest tests/test_architectures.py`.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from architectures import EVERY, tiny_folder

import workbench as wb
from workbench.core.errors import WorkbenchError
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.runtime.decoding import Decoding
from workbench.training.sequences import continued

pytestmark = [
    pytest.mark.skipif(not os.environ.get("WORKBENCH_ARCHITECTURES"), reason="takes minutes: run when asked for"),
    pytest.mark.filterwarnings("ignore"),  # of architectures' own code
]
HEAD = """# Architectures

Tiny random models, each loaded, answering alone and in a batch, scoring a text, saved and read again; every token and
every likelihood compared with the model run without a cache. Made by `tests/test_architectures.py` with transformers
{transformers}, torch {torch}, Python {python}.

| architecture | found |
|---|---|
"""
PROMPTS = ("What is a lobster?", "Rain", "Why does the boat have twelve seats?")
NEAR = 0.02  # of the logits' spread: rounding may choose another of two tokens that are so close


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Of every token, the model run as it is, without a cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def is_greedy(variant: wb.Variant, prompt: list[int], made: list[int]) -> bool:
    """Whether every token was the likeliest behind those before it, or as good as that."""
    found = logits(variant.model, [*prompt, *made])[len(prompt) - 1 : -1]
    behind = found.amax(dim=-1) - found.gather(-1, torch.tensor(made)[:, None])[:, 0]
    return bool((behind <= NEAR * found.std(dim=-1)).all())


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, str]]:
    """What was found of every architecture, written at the end."""
    found: dict[str, str] = {}
    yield found
    rows = "".join(f"| {name} | {said} |\n" for name, said in sorted(found.items()))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    head = HEAD.format(python=platform.python_version(), **versions)
    Path(os.environ["WORKBENCH_ARCHITECTURES"]).write_text(head + rows, encoding="utf-8")


@pytest.mark.parametrize("name", EVERY)
def test_right_or_refused(tokenizer, tiny_text: wb.Text, tmp_path: Path, name: str, table: dict[str, str]) -> None:
    table[name] = "**wrong**"
    folder = tiny_folder(tmp_path / "model", name, tokenizer)
    try:
        variant = wb.load(folder, device="cpu", dtype="float32")
    except WorkbenchError as error:
        table[name] = f"refused: {error}"
        return
    prompts = [variant.encode(prompt) for prompt in PROMPTS]
    alone = [continued(variant, variant.model, [prompt], Decoding(max_new_tokens=6))[0] for prompt in prompts]
    together = continued(variant, variant.model, prompts, Decoding(max_new_tokens=6))
    for prompt, *answers in zip(prompts, alone, together, strict=True):
        assert all(is_greedy(variant, prompt, answer) for answer in answers)

    spans = task_spans(variant, tiny_text)
    (likely,) = likelihoods([variant], [spans])
    for span, nll in zip(spans, likely.nll, strict=True):
        logs = logits(variant.model, list(span.ids))[-len(span.target) :].log_softmax(dim=-1)
        assert nll == pytest.approx(-float(logs.gather(-1, torch.tensor(span.target)[:, None]).sum()), rel=2e-3)

    again = wb.load(variant.save(tmp_path / "export"), device="cpu")
    before, after = (logits(each.model, prompts[0]) for each in (variant, again))
    assert float((after - before).norm() / before.norm()) < 1e-3
    table[name] = f"right. {' '.join(variant.notes)}".strip()
