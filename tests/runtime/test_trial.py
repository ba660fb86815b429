"""However an architecture keeps its state, its answers are those of the model run without any."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import tiny_folder

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.runtime import trial
from workbench.runtime.decoding import Continuation, Decoding
from workbench.runtime.engine import Eager
from workbench.runtime.rows import Way
from workbench.steps import finetune, prune, quantize

OTHERS = ("mamba", "mamba2", "bamba", "rwkv", "recurrent_gemma", "openai-gpt", "minimax", "llama4_text", "xlstm")
AHEAD = ("xlnet", "bert", "roberta")  # without `is_decoder` they see what comes after
PROMPTS = ("What is a lobster?", "Rain", "Why does the boat have twelve seats?", "Snow")


@pytest.fixture(scope="module")
def load_other(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], wb.Variant]:
    root, loaded = tmp_path_factory.mktemp("others"), {}

    def load(name: str) -> wb.Variant:
        if name not in loaded:
            loaded[name] = wb.load(tiny_folder(root / name, name, tokenizer), device="cpu", dtype="float32")
        return loaded[name]

    return load


def decoded(variant: wb.Variant, prompts: list[list[int]], n: int) -> list[list[int]]:
    rows = [Continuation(()) for _ in prompts]
    for _ in Eager().decode(variant.model, prompts, Decoding(max_new_tokens=n), rows):
        pass
    return [row.ids for row in rows]


def best(variant: wb.Variant, prompt: list[int], n: int) -> list[int]:
    """The likeliest tokens, everything read again for each."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(variant.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", OTHERS)
def test_answers_alone_and_together(load_other, name: str) -> None:
    variant = load_other(name)
    prompts = [variant.encode(prompt) for prompt in PROMPTS]
    expected = [best(variant, prompt, 8) for prompt in prompts]
    assert [decoded(variant, [prompt], 8)[0] for prompt in prompts] == expected
    assert decoded(variant, prompts, 8) == expected


@pytest.mark.parametrize("name", ["mamba", "bamba"])
def test_answers_are_those_of_transformers(load_other, name: str) -> None:
    variant = load_other(name)
    ids = variant.encode("What is a lobster?")
    made = variant.model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0
    )
    assert decoded(variant, [ids], 8) == [made[0, len(ids) :].tolist()]


@pytest.mark.parametrize("name", OTHERS)
def test_likelihood_of_answers_and_text(load_other, tiny_task: wb.Task, tiny_text: wb.Text, name: str) -> None:
    variant = load_other(name)
    for task in (tiny_task, tiny_text):
        spans = wb.measurement.likelihood.task_spans(variant, task, 3)
        total = 0.0
        for span in spans:
            ids = torch.tensor([span.ids])
            with torch.no_grad():
                logs = variant.model(input_ids=ids, use_cache=False).logits[0, -len(span.target) :].log_softmax(-1)
            total -= float(logs.gather(-1, torch.tensor(span.target)[:, None]).sum())
        (found,) = wb.measurement.likelihood.likelihoods([variant], [spans])
        assert sum(found.nll) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", AHEAD)
def test_a_model_that_reads_ahead_is_refused(tokenizer, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="depends on the tokens after it"):
        wb.load(tiny_folder(tmp_path / name, name, tokenizer, spread=None))


def test_a_decoder_of_the_same_kind_is_taken(tokenizer, tmp_path: Path) -> None:
    variant = wb.load(tiny_folder(tmp_path / "bert", "bert", tokenizer, is_decoder=True))
    prompt = variant.encode("Rain")
    assert decoded(variant, [prompt], 6) == [best(variant, prompt, 6)]


def test_a_slow_way_is_said(load_other) -> None:
    assert load_other("openai-gpt").notes == (trial.notes(Way(state=""))[0],)
    assert "read one after another" in load_other("mamba").notes[0]
    assert load_other("bamba").notes == ()
    with pytest.raises(InvalidInput, match="no growing key-value cache"):
        load_other("openai-gpt").apply(quantize.KVCache())


def test_what_steps_make_is_run_in_the_same_way(load_other, tiny_text: wb.Text) -> None:
    """Sizes are no part of what decides, so nothing is tried again."""
    variant = load_other("mamba")
    before = len(trial._found)
    shorter = variant.apply(prune.DropBlocks(share=0.25), tiny_text)
    assert trial.way_of(shorter.model) == trial.way_of(variant.model)
    prompt = shorter.encode("Rain")
    assert decoded(shorter, [prompt], 6) == [best(shorter, prompt, 6)]
    assert len(trial._found) == before


@pytest.mark.parametrize("name", ["mamba", "llama4_text", "bamba"])
def test_they_learn(load_other, tiny_task: wb.Task, tmp_path: Path, name: str) -> None:
    variant = load_other(name)
    tuned = variant.apply(finetune.LoRA(rank=2, epochs=1, learning_rate=1e-2), tiny_task)
    prompt = tuned.encode("Rain")
    assert decoded(tuned, [prompt], 6) == [best(tuned, prompt, 6)]
    again = wb.load(tuned.save(tmp_path / "tuned"))
    assert decoded(again, [prompt], 6) == decoded(tuned, [prompt], 6)
    ids = torch.tensor([prompt])
    assert not torch.equal(tuned.model(input_ids=ids).logits, variant.model(input_ids=ids).logits)
