"""A tokenizer may know tokens that the model has no row for, such as one for images that was added later."""

import copy
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.steps import prompt, prune


@pytest.fixture
def short(folders: dict[str, Path], tokenizer, tmp_path: Path) -> wb.Variant:
    made = copy.deepcopy(tokenizer)
    made.add_tokens([AddedToken("<image_soft_token>", special=True)])
    AutoModelForCausalLM.from_pretrained(folders["llama"]).save_pretrained(tmp_path / "short")
    made.save_pretrained(tmp_path / "short")
    variant = wb.load(tmp_path / "short")
    assert len(variant.tokenizer) > len(variant.model.get_input_embeddings().weight)
    return variant


def test_it_answers_and_a_text_never_becomes_such_a_token(short: wb.Variant) -> None:
    rows = len(short.model.get_input_embeddings().weight)
    assert max(short.encode("an <image_soft_token> here")) < rows
    assert short.generate("Rain <image_soft_token>", max_new_tokens=3).token_ids


def test_answers_are_constrained(short: wb.Variant) -> None:
    choices = short.apply(prompt.Constrain(form="choices", rule="yes\nno"))
    assert choices.generate("hi", max_new_tokens=20).text in ("yes", "no")
    fields = {"a": {"enum": ["yes", "no"]}}
    schema = {"type": "object", "properties": fields, "required": ["a"], "additionalProperties": False}
    answer = short.apply(prompt.Constrain(rule=json.dumps(schema))).generate("hi", max_new_tokens=30).text
    assert json.loads(answer)["a"] in ("yes", "no")


def test_its_vocabulary_is_cut(short: wb.Variant, tmp_path: Path) -> None:
    few = wb.Text(name="few", text="rain rain rain rain " * 20, window=8, calibration=1, test=1)
    cut = short.apply(prune.Vocabulary(keep=0), few)
    rows = len(cut.model.get_input_embeddings().weight)
    assert rows < len(short.model.get_input_embeddings().weight)
    assert max(cut.tokenizer.get_vocab().values()) < rows
    assert cut.tokenizer.tokenize("rain rain") == short.tokenizer.tokenize("rain rain")
    again = wb.load(cut.save(tmp_path / "export"))
    assert again.generate("rain", max_new_tokens=3).token_ids == cut.generate("rain", max_new_tokens=3).token_ids
