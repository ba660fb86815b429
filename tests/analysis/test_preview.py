"""Previews: what they say is what applying and scoring says, on little; nothing is left behind."""

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch

import workbench as wb
from workbench.analysis.preview import PROMPT, Preview, preview
from workbench.answering.request import Request
from workbench.core.errors import Cancelled, InvalidInput
from workbench.core.progress import Progress
from workbench.layers import activations
from workbench.layers.step import LayerStep
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.steps import prune, quantize

NEUTRAL = [prune.Magnitude(sparsity=0.0), prune.Wanda(sparsity=0.0), prune.SparseGPT(sparsity=0.0)]


@pytest.mark.parametrize("step", NEUTRAL, ids=lambda step: step.label)
def test_nothing_changes_at_strength_zero(base: wb.Variant, tiny_text: wb.Text, step: LayerStep) -> None:
    found = preview(base, step, tiny_text)
    assert found.kl == 0
    assert found.perplexity == found.base_perplexity
    assert found.text == found.base_text
    assert found.zeros == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_it_says_what_applying_and_scoring_say(
    load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text, architecture: str
) -> None:
    base, step = load_tiny(architecture), prune.Wanda(sparsity=0.6)
    found = preview(base, step, tiny_text, "How many seats?")
    made = base.apply(step, tiny_text)
    spans = task_spans(base, tiny_text)
    first, second = likelihoods([base, made], [spans, spans])
    tokens = sum(first.tokens)
    assert found.tokens == tokens == 4 * 31
    assert found.kl == pytest.approx(sum(second.kl) / tokens, rel=1e-3)
    for ours, theirs in ((found.base_perplexity, first), (found.perplexity, second)):
        assert ours == pytest.approx(torch.tensor(sum(theirs.nll) / tokens).exp().item(), rel=1e-3)
    assert found.text == made.generate("How many seats?", max_new_tokens=16).text
    assert found.base_text == base.generate("How many seats?", max_new_tokens=16).text
    assert found.zeros == pytest.approx(0.6, abs=0.02)
    assert found.seconds > 0


def test_a_task_is_scored_on_its_gold_answers(base: wb.Variant, tiny_task: wb.Task) -> None:
    found = preview(base, prune.Wanda(), tiny_task)
    spans = task_spans(base, tiny_task, 2)
    assert 0 < found.tokens <= sum(len(span.target) for span in task_spans(base, tiny_task))
    assert found.kl is not None
    assert found.kl > 0
    assert len(spans[0].ids) < 128


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_packed_layers_are_read_as_they_would_be(base: wb.Variant, tiny_text: wb.Text, bits: int) -> None:
    step = quantize.RTN(bits=bits)
    found = preview(base, step, tiny_text)
    made = base.apply(step, tiny_text)
    spans = task_spans(base, tiny_text)
    scored = likelihoods([base, made], [spans, spans])[1]
    assert found.kl == pytest.approx(sum(scored.kl) / sum(scored.tokens), rel=0.05, abs=5e-4)  # bfloat16 products
    assert found.zeros is None
    assert 1 < found.bits_per_weight < 32


def test_what_belongs_to_the_variant_is_computed_once(
    base: wb.Variant, tiny_text: wb.Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    stream = wb.Variant.stream
    monkeypatch.setattr(
        wb.Variant, "stream", lambda variant, *args, **kw: asked.append(variant.name) or stream(variant, *args, **kw)
    )
    passes: list[int] = []
    enter = activations.enter_blocks
    monkeypatch.setattr(activations, "enter_blocks", lambda *args: passes.append(1) or enter(*args))
    for sparsity in (0.3, 0.4, 0.5):
        preview(base, prune.Wanda(sparsity=sparsity, sequential=True), tiny_text)
    assert asked == [base.name, "Wanda", "Wanda", "Wanda"]
    assert len(passes) == 1
    preview(base, prune.Wanda(), tiny_text, "Another question?")
    assert asked.count(base.name) == 2


def test_without_a_task_there_is_an_answer_and_no_score(base: wb.Variant) -> None:
    found = preview(base, prune.Magnitude())
    assert isinstance(found, Preview)
    assert (found.kl, found.perplexity, found.base_perplexity, found.tokens) == (None, None, None, 0)
    assert found.base_text == base.generate(PROMPT, max_new_tokens=16).text


def test_a_broken_model_does_not_diverge_by_nothing(base: wb.Variant, tiny_text: wb.Text) -> None:
    class _Broken(prune.Magnitude):
        def change(self, weight, inputs):
            return weight * float("nan")

    found = preview(base, _Broken(sparsity=0.5), tiny_text)
    assert math.isnan(found.kl)
    assert math.isnan(found.perplexity)
    broken = base.apply(_Broken(sparsity=0.5)).renamed("broken")
    result = wb.compare([base, broken], tiny_text, rounds=1, new_tokens=2, store=False)
    assert math.isnan(result.runs[1]["kl_to_baseline"].value)
    assert "not numbers" in str(result.verdicts()["broken"])


def test_refusals_are_in_words(base: wb.Variant, tiny_text: wb.Text) -> None:
    with pytest.raises(InvalidInput, match="needs data"):
        preview(base, prune.Wanda())
    with pytest.raises(InvalidInput, match="shorten the prompt"):
        preview(base, prune.Magnitude(), tiny_text, "lobster " * 600)
    with pytest.raises(InvalidInput, match="already quantized"):
        preview(base.apply(quantize.Int8()), prune.Magnitude(), tiny_text)


def test_a_cancel_stops_it_and_nothing_is_left(base: wb.Variant, tiny_text: wb.Text) -> None:
    progress = Progress(lambda progress: progress.label.startswith("Magnitude") and progress.cancel())
    with pytest.raises(Cancelled):
        preview(base, prune.Magnitude(), tiny_text, progress=progress)
    before = [(name, tensor.clone()) for name, tensor in base.model.state_dict().items()]
    preview(base, prune.Magnitude(), tiny_text)
    assert all(torch.equal(tensor, base.model.get_parameter(name)) for name, tensor in before)


def test_the_variant_can_be_let_go(load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text) -> None:
    base = load_tiny("llama")
    preview(base, prune.Wanda(), tiny_text)
    gone = weakref.ref(base.model)
    del base
    gc.collect()
    assert gone() is None


def test_a_question_of_the_task_is_worded_as_a_comparison_words_it(base: wb.Variant, tiny_task: wb.Task) -> None:
    from workbench.measurement.scores import generate_answers

    examples = tuple(each.model_copy(update={"context": "All boats have seats."}) for each in tiny_task.test)
    task = tiny_task.model_copy(update={"test": examples, "instruction": "Be brief."})
    asked = Request.typed(examples[0].prompt, task)
    assert asked == Request.example(task, examples[0])
    assert Request.typed("Rain?", task) == Request.of("Rain?").but(instruction="Be brief.")
    assert Request.typed("Rain?", None) == Request.of("Rain?")
    found = preview(base, quantize.RTN(), task, asked)
    answer = generate_answers(base, task.model_copy(update={"max_new_tokens": 16}), examples[:1])[0]
    assert found.base_text == answer.text
