"""Latency, memory, likelihood and answers, each against an independent computation."""

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.measurement import latency, likelihood, memory, scores
from workbench.models import sharing
from workbench.models.packed import linear_layers, products
from workbench.runtime import kernels
from workbench.runtime.reader import Reader
from workbench.steps import prompt, prune, quantize
from workbench.tasks.task import Example, Task, Text

PROSE = "The tide comes in twice a day and goes out twice a day. " * 40


@pytest.fixture
def text() -> Text:
    return Text(name="tide", text=PROSE, window=24, calibration=2, test=7)


@pytest.fixture
def questions() -> Task:
    rows = [
        ("What is a lobster?", "a crustacean"),
        ("How many seats?", "12"),
        ("Rain before noon, or after it?", "before"),
    ]
    test = tuple(Example(id=str(i), prompt=p, answer=a) for i, (p, a) in enumerate(rows * 3))
    test = tuple(e.model_copy(update={"id": str(i)}) for i, e in enumerate(test))
    return Task(name="questions", instruction="Answer in one short sentence.", max_new_tokens=5, scorer="f1", test=test)


def reference(variant: wb.Variant, span: likelihood.Span) -> torch.Tensor:
    """Log-probabilities of one span, read alone, without batch, padding or prefix."""
    ids = torch.tensor([[*span.context, *span.target]])
    with torch.no_grad():
        logits = variant.model(input_ids=ids).logits[0].double()
    return torch.log_softmax(logits[len(span.context) - 1 : -1], dim=-1)


@pytest.fixture
def one_product() -> Iterator[None]:
    """Few rows and many may be multiplied by different kernels, whichever is faster here: here by the same."""
    with products.forced("widened to float32"):
        yield


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_likelihood_equals_one_by_one(
    architecture: str, load_tiny: Callable[[str], wb.Variant], questions: Task, text: Text, one_product: None
) -> None:
    base = load_tiny(architecture)
    changed = base.apply(quantize.Int8())
    for task in (questions, text):
        spans = likelihood.task_spans(base, task)
        found = likelihood.likelihoods([base, changed], [spans, spans])
        for index, span in enumerate(spans):
            dense, packed = reference(base, span), reference(changed, span)
            rows = torch.arange(len(span.target))
            assert found[0].tokens[index] == len(span.target)
            assert found[0].nll[index] == pytest.approx(-dense[rows, list(span.target)].sum().item(), rel=1e-4)
            assert found[0].kl[index] == pytest.approx(0, abs=1e-5)
            assert found[0].same_top[index] == len(span.target)
            assert found[0].greedy[index] == (dense.argmax(-1) == torch.tensor(span.target)).sum().item()
            kl = (dense.exp() * (dense - packed)).sum().item()
            assert found[1].kl[index] == pytest.approx(kl, rel=0.2, abs=0.01)


def test_what_the_baseline_made_is_remembered(base: wb.Variant, text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    child, spans = base.apply(prune.Magnitude(sparsity=0.3)), likelihood.task_spans(base, text)
    whole = likelihood.likelihoods([base, child], [spans, spans])
    remembered: dict[Any, Any] = {}
    assert likelihood.likelihoods([base, child], [spans, spans], remembered=remembered) == whole
    read: list[str] = []
    states = Reader.states
    monkeypatch.setattr(Reader, "states", lambda self, each: read.append(self._label) or states(self, each))
    assert likelihood.likelihoods([base, child], [spans, spans], remembered=remembered) == whole
    assert set(read) == {child.name}


def test_contexts_may_differ_between_variants(base: wb.Variant, questions: Task) -> None:
    told = base.apply(prompt.System(text="The captain takes one of the seats."))
    spans = [likelihood.task_spans(each, questions) for each in (base, told)]
    found = likelihood.likelihoods([base, told], spans)[1]
    for index in range(len(spans[0])):
        before, after = reference(base, spans[0][index]), reference(told, spans[1][index])
        assert len(spans[1][index].context) > len(spans[0][index].context)
        assert found.kl[index] == pytest.approx((before.exp() * (before - after)).sum().item(), rel=1e-3, abs=1e-5)


def test_answers_in_batches_equal_one_by_one(base: wb.Variant, questions: Task) -> None:
    batched = [each.text.strip() for each in scores.generate_answers(base, questions, questions.test)]
    alone = [base.generate(questions.prompt(e), max_new_tokens=5).text.strip() for e in questions.test]
    assert batched == alone


def test_choice_takes_the_likelier_answer(base: wb.Variant) -> None:
    said = base.generate("What is a lobster?", max_new_tokens=4).text
    test = (
        Example(id="1", prompt="What is a lobster?", answer=said, choices=(said, "12 34 56 78 90")),
        Example(id="2", prompt="What is a lobster?", answer="12 34 56 78 90", choices=("12 34 56 78 90", said)),
    )
    assert scores.scored(base, Task(name="pick", scorer="choice", test=test)).scores == [1.0, 0.0]


def test_timing_has_one_time_a_token(base: wb.Variant, text: Text) -> None:
    timing = latency.time_request(base, "What is a lobster?", 5)
    assert len(timing.inter_token) == 4
    assert timing.throughput == pytest.approx(5 / (timing.ttft + sum(timing.inter_token)))
    rounds = list(latency.time_interleaved([base, base], text, 3, 4, wb.Progress()))
    assert [len(each) for each in rounds] == [2, 2, 2]


def test_cpu_peak_is_the_weights_and_what_the_request_needs(base: wb.Variant) -> None:
    short = memory.peak_memory(base, "tide", 2)
    long = memory.peak_memory(base, "tide " * 100, 2)
    vocabulary, hidden = base.model.config.vocab_size, base.model.config.hidden_size
    assert short > base.total_bytes + vocabulary * 4  # at least one row of logits
    tokens = len(base.encode("tide " * 100))
    assert long - short > tokens * hidden * 4  # at least one more activation of every token


def test_bits_per_weight(base: wb.Variant) -> None:
    assert memory.bits_per_weight(base) == pytest.approx(32, rel=0.01)
    packed = base.apply(quantize.Int8())
    linear = sum(m.weight.numel() for m in base.model.modules() if isinstance(m, torch.nn.Linear))
    rows = sum(m.out_features for m in base.model.modules() if isinstance(m, torch.nn.Linear))
    rest = sum(p.numel() for p in base.model.parameters()) - linear
    buffers = 4 * base.model.model.rotary_emb.inv_freq.numel()
    wanted = 8 * (linear + 4 * rows + 4 * rest + buffers) / (linear + rest)
    assert memory.bits_per_weight(packed) == pytest.approx(wanted, rel=0.01)


@pytest.mark.model
def test_perplexity_equals_the_models_own_loss(smollm: wb.Variant) -> None:
    text = wb.read_text("data/prose", window=64, calibration=0, test=3)
    windows = torch.tensor(text.windows(smollm.tokenizer, "test"))
    with torch.no_grad():
        loss = smollm.model(input_ids=windows, labels=windows).loss.item()
    run = wb.measure(smollm, text, rounds=1, new_tokens=2, store=False)
    assert run["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-4)


def test_who_listens_with_hooks_hears_every_token(base: wb.Variant) -> None:
    heard: list[torch.Size] = []
    head = base.model.get_output_embeddings()
    base.generate("one two", max_new_tokens=2)
    hook = head.register_forward_hook(lambda _, args, output: heard.append(output.shape))
    base.generate("one two", max_new_tokens=2)
    hook.remove()
    assert heard


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ["MKL", "oneDNN", "MKL, weight first"])
def test_every_product_of_a_dense_layer_is_the_same(name: str, biased: bool) -> None:
    dense = torch.nn.Linear(64, 96, bias=biased)
    layer = kernels.DenseLinear(dense.weight, dense.bias)
    with torch.no_grad(), products.forced(name):
        for rows in ((1,), (1, 1), (2, 1), (3, 7), (200,)):
            x = torch.randn(*rows, dense.in_features)
            torch.testing.assert_close(layer(x), dense(x))


def test_dense_layers_choose_without_weights_of_their_own(base: wb.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LEAST_BYTES", 0)
    monkeypatch.setattr(kernels, "_made", weakref.WeakKeyDictionary())
    shared, ids = kernels.quickened(base.model), torch.arange(3, 9)[None]
    assert {type(layer) for _, layer in linear_layers(base.model, head=True)} == {torch.nn.Linear}
    assert isinstance(shared.model.layers[0].mlp.up_proj, kernels.DenseLinear)
    assert sharing.storages(shared).keys() == sharing.storages(base.model).keys()
    with torch.no_grad():
        torch.testing.assert_close(shared(ids).logits, base.model(ids).logits)
