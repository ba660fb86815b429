"""Constraints: whatever a random model would rather say, the answer has the form."""

import json
import re

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import workbench as wb
from workbench.answering.grammar import Guide, of_pattern
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.steps import output, prompt

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["boat", "lobster"]},
        "seats": {"type": "integer", "minimum": 1, "maximum": 99},
        "red": {"type": "boolean"},
        "order": {"type": ["string", "null"], "pattern": "^[A-F]-[0-9]{5}$"},
    },
    "required": ["kind", "seats", "red", "order"],
    "additionalProperties": False,
}
QUESTION = "How many seats?"


def asked(base: wb.Variant, seed: int, **rule: str) -> wb.Generation:
    child = base.apply(prompt.Constrain(**rule))
    return child.generate(QUESTION, max_new_tokens=120, temperature=1.5, seed=seed)


@pytest.mark.parametrize("seed", range(8))
def test_json_fits_its_schema(base: wb.Variant, seed: int) -> None:
    answer = asked(base, seed, form="json", rule=json.dumps(SCHEMA))
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert answer.finish_reason in ("stop", "complete")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pattern", [r"[a-f]{3,5}-[0-9]{2}", r"(yes|no), (rain|wind)\.", "猫+ 🦞"])
def test_text_matches_its_pattern(base: wb.Variant, seed: int, pattern: str) -> None:
    assert re.fullmatch(pattern, asked(base, seed, form="pattern", rule=pattern).text)


@pytest.mark.parametrize("seed", range(4))
def test_a_choice_is_taken(base: wb.Variant, seed: int) -> None:
    assert asked(base, seed, form="choices", rule="rain (light)\n\n wind \n[0-9]+").text in {
        "rain (light)",
        "wind",
        "[0-9]+",
    }


@pytest.mark.parametrize("seed", range(4))
def test_words_and_tokens_are_limited(base: wb.Variant, seed: int) -> None:
    assert 1 <= len(asked(base, seed, form="words", rule="4").text.split()) <= 4
    assert len(asked(base, seed, form="tokens", rule="5").token_ids) <= 5


@pytest.mark.parametrize(
    ("text", "count"),
    [("one two, three", 3), ("\u732b\u3068\u72ac cat", 4), ("\u0e17\u0e48\u0e32\u0e40\u0e23\u0e37\u0e2d", 2)],
)
def test_words_are_counted_without_spaces_too(base: wb.Variant, text: str, count: int) -> None:
    ids = base.tokenizer(text)["input_ids"]
    for limit in (count, count - 1):
        guide = Guide(
            base.tokenizer, len(base.tokenizer), prompt.Constrain(form="words", rule=str(limit)).grammar(base)
        )
        allowed = []
        for token in ids:
            logits = torch.zeros(len(base.tokenizer))
            guide.restrict(logits)
            if logits[token] != 0:
                break
            guide.take(token)
            allowed.append(token)
        assert (allowed == ids) == (limit == count)


def test_greedy_answers_are_constrained_in_batches_too(base: wb.Variant, tiny_task: wb.Task) -> None:
    from workbench.measurement.scores import generate_answers

    child = base.apply(prompt.Constrain(form="pattern", rule=r"It has \d seats\."))
    together = [each.text for each in generate_answers(child, tiny_task, tiny_task.test)]
    alone = [child.generate(each.prompt, max_new_tokens=8).text for each in tiny_task.test]
    assert together == alone


def test_an_answer_that_was_cut_off_says_so(base: wb.Variant) -> None:
    child = base.apply(prompt.Constrain(rule=json.dumps(SCHEMA)))
    answer = child.generate(QUESTION, max_new_tokens=3)
    assert answer.notes == ("Ended (length) before the constraint was met: allow more tokens.",)


def test_two_constraints_hold_together(base: wb.Variant) -> None:
    both = base.apply(prompt.Constrain(form="pattern", rule="[a-m]+x*")).apply(prompt.Constrain(form="words", rule="1"))
    assert re.fullmatch("[a-m]+x*", both.generate(QUESTION, max_new_tokens=12, temperature=1.0).text)
    never = base.apply(prompt.Constrain(form="pattern", rule="[a-m]+")).apply(
        prompt.Constrain(form="pattern", rule="[n-z]+")
    )
    for temperature in (0.0, 1.0):
        with pytest.raises(InvalidInput, match="No token fits all the constraints"):
            never.generate(QUESTION, temperature=temperature)


@pytest.mark.parametrize(
    ("form", "rule", "why"),
    [
        ("json", "{", "not valid JSON"),
        ("json", "[1]", "is a JSON object"),
        ("json", '{"type": "object", "required": ["a"], "properties": {"a": false}}', "cannot be"),
        ("json", '{"type": "string", "minLength": 5, "maxLength": 2}', "cannot be"),
        ("json", '{"type": "lobster"}', "cannot be"),
        ("pattern", "(", "cannot be"),
        ("pattern", r"(a)\1", "cannot be"),
        ("choices", " \n ", "no choice"),
        ("words", "many", "whole number"),
        ("tokens", "0", "whole number"),
    ],
)
def test_a_rule_that_nothing_can_meet_is_refused(base: wb.Variant, form: str, rule: str, why: str) -> None:
    with pytest.raises(WorkbenchError, match=why) as found:
        base.apply(prompt.Constrain(form=form, rule=rule))
    assert str(found.value).endswith(".")
    assert "\n" not in str(found.value)
    assert base.generate(QUESTION, max_new_tokens=2).token_ids


@pytest.mark.parametrize("rule", ["((a{1,500}){1,500}){1,500}", "(a*)*(a*)*(a*)*b?", "(a|aa|aaa)+"])
def test_a_pattern_that_explodes_elsewhere_is_followed(base: wb.Variant, rule: str) -> None:
    assert re.fullmatch("a*b?", asked(base, 0, form="pattern", rule=rule).text)


def test_the_form_survives_a_save_and_sits_with_other_steps(base: wb.Variant, tmp_path) -> None:
    child = base.apply(prompt.Constrain(form="pattern", rule="[ab]{4}c")).apply(output.Stop(strings="c"))
    again = wb.load(child.save(tmp_path / "export"), device="cpu")
    assert re.fullmatch("[ab]{4}", again.generate(QUESTION).text)


def test_a_vocabulary_without_the_characters_is_refused(base: wb.Variant, monkeypatch) -> None:
    """A vocabulary of whole words cannot write what it has no letters for."""
    words = Tokenizer(models.WordLevel({"<|im_end|>": 0, "rain": 1, "wind": 2}, unk_token="rain"))
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>")
    with pytest.raises(InvalidInput, match="constraint"):
        Guide(tokenizer, 3, of_pattern("[0-9]+")).restrict(torch.zeros(3))
    logits = torch.zeros(3)
    Guide(tokenizer, 3, of_pattern("(rain|wind)+")).restrict(logits)
    assert logits.isfinite().tolist() == [False, True, True]


def test_a_limit_holds_whatever_comes_before_or_after(base: wb.Variant) -> None:
    limit, thoughts = prompt.Constrain(form="tokens", rule="5"), prompt.ChainOfThought()
    for steps in ((limit, thoughts), (thoughts, limit)):
        child = base.apply(steps[0]).apply(steps[1])
        assert len(child.generate(QUESTION, max_new_tokens=20).token_ids) <= 5


def test_a_schema_cannot_loosen_its_own_guarantee(base: wb.Variant) -> None:
    rule = {"x-guidance": {"lenient": True}, "type": "object", "patternRequired": ["a"], "unevaluatedProperties": False}
    with pytest.raises(InvalidInput):
        base.apply(prompt.Constrain(rule=json.dumps(rule)))


@pytest.mark.parametrize(
    ("form", "rule", "told"),
    [
        (
            "json",
            '{"type": "integer", "minimum": 0, "maximum": 18446744073709551616}',
            "18446744073709551616 is beyond",
        ),
        ("json", '{"const": -9223372036854775809}', "is beyond the whole numbers of 64 bits"),
        ("json", '{"const": ' + "9" * 5000 + "}", "is beyond the whole numbers of 64 bits"),
        ("json", '{"type": "number", "maximum": 1e400}', "1e400 is no finite number"),
        ("json", '{"const": NaN}', "NaN is no finite number"),
        ("json", '{"const": "\\ud83d"}', "cannot be enforced"),
        ("json", '{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ("pattern", "(?=a)[ab]{2}", "enforced: look-around, including look-ahead and look-behind, is not supported"),
        ("pattern", "(", "enforced: unclosed group"),
        ("pattern", "[z-a]", "invalid character class range"),
    ],
)
def test_the_reason_is_told_in_one_sentence(base: wb.Variant, form: str, rule: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        base.apply(prompt.Constrain(form=form, rule=rule))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
