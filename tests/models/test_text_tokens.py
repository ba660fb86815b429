"""A text becomes tokens as its tokenizer says: with the token that begins one, if there is one."""

import copy
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

import workbench as wb
from workbench.core.errors import Incomparable
from workbench.layers.calibration import calibration_windows
from workbench.measurement.comparison import Comparison
from workbench.measurement.likelihood import task_spans
from workbench.models.tokens import cut_windows, encode_text, start_tokens
from workbench.steps import prune, quantize
from workbench.training.sequences import read_samples


def begins_with(tokenizer, *tokens: str):
    """A copy of a tokenizer that puts tokens before every text, and one behind it."""
    made = copy.deepcopy(tokenizer)
    special = [(each, made.convert_tokens_to_ids(each)) for each in {*tokens, "<|im_end|>"}]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(tokens)} $A <|im_end|>", special_tokens=special
    )
    made.chat_template = None
    return made


@pytest.fixture
def opened(folders: dict[str, Path], tokenizer, tmp_path: Path) -> wb.Variant:
    """A tiny Llama whose tokenizer begins every text."""
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    model.save_pretrained(tmp_path / "opened")
    begins_with(tokenizer, "<|im_start|>").save_pretrained(tmp_path / "opened")
    return wb.load(tmp_path / "opened")


def test_what_begins_a_text_is_the_tokenizers(tokenizer) -> None:
    assert start_tokens(tokenizer) == []
    start, pad = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|endoftext|>"])
    assert start_tokens(begins_with(tokenizer, "<|im_start|>")) == [start]
    assert start_tokens(begins_with(tokenizer, "<|endoftext|>", "<|im_start|>")) == [pad, start]


def test_windows_are_cut_behind_what_begins_them() -> None:
    assert cut_windows(range(10, 20), 4, []) == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert cut_windows(range(10, 20), 4, [1]) == [[1, 10, 11, 12], [1, 13, 14, 15], [1, 16, 17, 18]]
    assert cut_windows([1, 10, 11, 12, 13, 1, 14, 15], 4, [1]) == [[1, 10, 11, 12], [1, 13, 1, 14]]
    assert cut_windows([1, 10, 11, 12, 1, 14, 15, 16], 4, [1]) == [[1, 10, 11, 12], [1, 14, 15, 16]]


def test_every_window_of_a_text_begins_as_a_text(opened: wb.Variant, tiny_text: wb.Text) -> None:
    start = opened.tokenizer.convert_tokens_to_ids("<|im_start|>")
    for split in ("calibration", "train", "test"):
        assert {window[0] for window in tiny_text.windows(opened.tokenizer, split)} == {start}
        assert {len(window) for window in tiny_text.windows(opened.tokenizer, split)} == {tiny_text.window}
    every = [w for split in ("calibration", "train", "test") for w in tiny_text.windows(opened.tokenizer, split)]
    text = [token for window in every for token in window[1:]]
    assert text == encode_text(opened.tokenizer, tiny_text.text)[: len(text)], "nothing of the text is left out"
    assert {sample.ids[0] for sample in read_samples(opened, tiny_text, "train").samples} == {start}
    assert {span.context for span in task_spans(opened, tiny_text)} == {(start,)}


def test_examples_are_calibrated_on_behind_a_beginning(opened: wb.Variant, tiny_task: wb.Task) -> None:
    start = opened.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert {window[0] for window in calibration_windows(opened, tiny_task)} == {start}
    assert opened.encode("Rain")[:2] == [start, *encode_text(opened.tokenizer, "R")]


def test_perplexity_is_that_of_plain_transformers(opened: wb.Variant, tiny_text: wb.Text) -> None:
    """The text cut into pieces, each after the beginning that the tokenizer gives it."""
    ids = opened.tokenizer(tiny_text.text, add_special_tokens=False)["input_ids"]
    start, width = opened.tokenizer("")["input_ids"][0], tiny_text.window - 1
    pieces = [ids[at : at + width] for at in range(0, len(ids) - width + 1, width)][-tiny_text.test :]
    losses = []
    for piece in pieces:
        tokens = torch.tensor([[start, *piece]])
        with torch.no_grad():
            losses.append(float(opened.model(input_ids=tokens, labels=tokens).loss))
    expected = torch.tensor(losses).mean().exp()
    run = wb.measure(opened, tiny_text, rounds=1, new_tokens=2, store=False)
    assert run["perplexity"].value == pytest.approx(float(expected), rel=1e-4)
    assert run.beginning == "<|im_start|>"


def test_runs_on_other_windows_are_not_compared(opened: wb.Variant, tiny_text: wb.Text) -> None:
    run = wb.measure(opened, tiny_text, rounds=1, new_tokens=2, store=False)
    with pytest.raises(Incomparable, match="windows of 'opened' begin with ''"):
        Comparison([run, run.model_copy(update={"beginning": ""})])


def test_a_smaller_vocabulary_begins_a_text_with_the_same_token(opened: wb.Variant, tiny_text: wb.Text) -> None:
    cut = opened.apply(prune.Vocabulary(keep=200), tiny_text)
    for split in ("calibration", "test"):
        ours, theirs = (
            [each.tokenizer.convert_ids_to_tokens(window) for window in tiny_text.windows(each.tokenizer, split)]
            for each in (cut, opened)
        )
        assert ours == theirs


def test_an_export_begins_a_text_with_the_same_token(opened: wb.Variant, tiny_text: wb.Text, tmp_path: Path) -> None:
    again = wb.load(opened.apply(quantize.RTN(bits=8)).save(tmp_path / "export"))
    assert tiny_text.windows(again.tokenizer, "test") == tiny_text.windows(opened.tokenizer, "test")


def learned(folders: dict[str, Path], tokenizer, folder: Path, ends: list[int] | None) -> tuple[wb.Variant, list[int]]:
    """A variant whose generation settings name these ends, and what it learns of the answer "yes"."""
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**{**AutoModelForCausalLM.from_pretrained(folders["llama"]).config.to_dict(), "eos_token_id": None})
    )
    model.generation_config = GenerationConfig(eos_token_id=ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    variant = wb.load(folder)
    task = wb.Task(
        name="t",
        train=[wb.Example(id="a", prompt="q", answer="<think>so</think>yes")],
        test=[wb.Example(id="b", prompt="r", answer="no")],
    )
    (sample,) = read_samples(variant, task, "train").samples
    return variant, list(sample.ids[sample.start :])


def test_the_end_that_is_learned(folders, tokenizer, tmp_path: Path) -> None:
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    nameless = copy.deepcopy(tokenizer)
    nameless.eos_token = None
    assert learned(folders, nameless, tmp_path / "a", [end])[1][-1] == end, "only the generation settings name one"
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    assert learned(folders, other, tmp_path / "b", [pad, end])[1][-1] == end, "turns end as the template ends them"
    other.chat_template = None
    assert learned(folders, other, tmp_path / "c", [pad, end])[1][-1] == pad, "without a template, as a text ends"
    nameless.chat_template = None
    assert learned(folders, nameless, tmp_path / "d", None)[1][-1] not in (end, pad), "nothing is known to end it"


def test_tags_are_learned_as_the_tokens_that_they_are(folders, tokenizer, tmp_path: Path) -> None:
    tagged = copy.deepcopy(tokenizer)
    tagged.add_tokens(["<think>", "</think>"])
    tagged.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    folder = tmp_path / "tagged"
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    model.resize_token_embeddings(len(tagged), mean_resizing=False)
    model.save_pretrained(folder)
    tagged.save_pretrained(folder)
    variant = wb.load(folder)
    task = wb.Task(
        name="t",
        train=[wb.Example(id="a", prompt="q <think>", answer="<think>so</think>y<|stop|>")],
        test=[wb.Example(id="b", prompt="r", answer="no")],
    )
    (sample,) = read_samples(variant, task, "train").samples
    think, close, stop = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(
        ["<think>", "</think>", "<|stop|>"]
    )
    answer = list(sample.ids[sample.start :])
    assert (answer[0], answer.count(close), answer.count(stop)) == (think, 1, 0)
    assert think not in sample.ids[: sample.start], "a user's text is text"


def test_an_answer_at_the_end_is_continued(base: wb.Variant) -> None:
    turns = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    own = base.tokenizer.apply_chat_template(turns, continue_final_message=True, return_dict=False)
    assert base.encode(turns) == own
    assert base.generate(turns, max_new_tokens=2).prompt_tokens == len(own)
