"""Variants with another vocabulary beside their baseline."""

import math

import pytest
import torch

import workbench as wb
from workbench.core.errors import Incomparable
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.models.tokens import encode_text
from workbench.steps import quantize
from workbench.steps.prune.vocabulary import Vocabulary


def test_each_vocabulary_is_scored_with_its_own_ids(base, tiny_task) -> None:
    child, int8 = base.apply(Vocabulary(keep=0), tiny_task), base.apply(quantize.Int8())
    variants = [base, child, int8]
    plain, cut, packed = likelihoods(variants, [task_spans(each, tiny_task) for each in variants])
    assert cut.kl is None
    assert cut.same_top is None
    assert packed.kl is not None
    assert cut.tokens == plain.tokens
    example = tiny_task.test[0]
    ids, target = child.encode(tiny_task.prompt(example)), encode_text(child.tokenizer, example.answer)
    with torch.no_grad():
        logs = torch.log_softmax(child.model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1], dim=-1)
    assert cut.nll[0] == pytest.approx(-float(logs.gather(1, torch.tensor(target)[:, None]).sum()), rel=1e-4)
    alone = likelihoods([base, int8], [task_spans(each, tiny_task) for each in (base, int8)])
    assert alone[1].kl == pytest.approx(packed.kl, rel=1e-5)


def test_a_vocabulary_of_another_task(base, tiny_task, tiny_text) -> None:
    other = wb.Text(name="x", text="The tide. " * 20, window=4, calibration=0, test=1)
    child = base.apply(Vocabulary(keep=0), other)
    plain, cut = likelihoods([base, child], [task_spans(each, tiny_task) for each in (base, child)])
    assert len(task_spans(child, tiny_task)[0].target) > plain.tokens[0] == cut.tokens[0]
    assert all(math.isfinite(each) for each in cut.nll)
    with pytest.raises(Incomparable, match="other windows"):
        likelihoods([base, child], [task_spans(each, tiny_text) for each in (base, child)])


def test_the_comparison_says_so(base, tiny_task) -> None:
    text = wb.Text(name="x", text="The tide comes in. " * 20, window=4, calibration=0, test=3)
    for task in (tiny_task, text):
        child = base.apply(Vocabulary(keep=0), task)
        result = wb.compare([base, child], task, rounds=2, new_tokens=2, store=False)
        assert "kl_to_baseline" not in result[child.name].estimates
        assert "perplexity" in result[child.name].estimates
        assert "Another vocabulary" in str(result.verdicts()[child.name])
        result.figure()
        assert "Another vocabulary" in result._repr_html_()
