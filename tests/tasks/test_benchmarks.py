"""Public benchmarks from files: prompts and scores as lm-evaluation-harness has them, by hand, and its results read."""

import json
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.measurement.likelihood import likelihoods
from workbench.measurement.scores import scored
from workbench.runtime.reader import Span
from workbench.tasks.scoring import gsm8k_flexible, gsm8k_strict
from workbench.tasks.task import Example, Task

PIQA = {"goal": "How do seats look?", "sol1": "red", "sol2": "They have a back and four legs.", "label": 1}
ARC = {
    "question": "What is rain?", "choices": {"text": ["Water.", "Sand."], "label": ["A", "B"]}, "answerKey": "A",
}  # fmt: skip
HELLASWAG = {
    "activity_label": "Boats", "ctx_a": "A captain [header] waits.", "ctx_b": "the ferry", "label": "1",
    "endings": ["sinks. [title] End", "goes  out."],
}  # fmt: skip
GSM8K = {"question": "How much is 2 and 3?", "answer": "2 + 3 = 5.\n#### 5"}


def written(place: Path, *rows: dict[str, Any]) -> Path:
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_prompts_and_choices(tmp_path: Path) -> None:
    (piqa,) = wb.read_benchmark("piqa", written(tmp_path / "p.jsonl", PIQA)).test
    assert piqa.prompt == "Question: How do seats look?\nAnswer:"
    assert piqa.choices == (" red", " They have a back and four legs.")
    assert piqa.answer == piqa.choices[1]
    (arc,) = wb.read_benchmark("arc", written(tmp_path / "a.jsonl", ARC)).test
    assert (arc.prompt, arc.answer) == ("Question: What is rain?\nAnswer:", " Water.")
    (hella,) = wb.read_benchmark("hellaswag", written(tmp_path / "h.jsonl", HELLASWAG)).test
    assert hella.prompt == "Boats: A captain waits. The ferry"
    assert hella.choices == (" sinks.. End", " goes out.")
    assert hella.answer == " goes out."
    task = wb.read_benchmark("gsm8k", written(tmp_path / "g.jsonl", GSM8K, GSM8K), limit=1)
    assert (len(task.test), task.plain, task.scorer) == (1, True, "gsm8k_strict")


def test_shots_stand_before_the_question(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", GSM8K, GSM8K | {"question": "And 1 and 1?", "answer": "2\n#### 2"})
    test = written(tmp_path / "test.jsonl", GSM8K | {"question": "And 3 and 3?"})
    task = wb.read_benchmark("gsm8k", test, shots=2, examples=train)
    assert task.test[0].prompt == (
        "Question: How much is 2 and 3?\nAnswer: 2 + 3 = 5.\n#### 5\n\n"
        "Question: And 1 and 1?\nAnswer: 2\n#### 2\n\nQuestion: And 3 and 3?\nAnswer:"
    )
    assert len(task.calibration) == 2


@pytest.mark.parametrize(
    ("said", "strict", "flexible"),
    [
        ("It is 5.\n#### 5", 1.0, 1.0),
        ("It is 5.", 0.0, 1.0),
        ("#### 1,234\n#### 5", 0.0, 1.0),
        ("#### 5\n\nQuestion: and 7?", 1.0, 1.0),
        ("The answer is $5.", 0.0, 1.0),
        ("Nothing.", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("#### 50", 0.0, 0.0),
    ],
)
def test_gsm8k_scores(said: str, strict: float, flexible: float) -> None:
    assert gsm8k_strict(said, GSM8K["answer"]) == strict
    assert gsm8k_flexible(said, GSM8K["answer"]) == flexible
    assert gsm8k_strict("#### 1,234", "so it is\n#### 1234") == 1.0


def test_choices_by_their_likelihood_and_length(base: wb.Variant) -> None:
    """The harness' acc takes the sum, acc_norm divides by characters, choice by tokens: checked on summed logits."""
    prompt, choices = "Question: What is a lobster?\nAnswer:", (" A crustacean.", " It is a boat with twelve seats.")
    ids = [base.tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, *choices)]
    spans = [Span(tuple(ids[0]), tuple(each)) for each in ids[1:]]
    sums = [-each for each in likelihoods([base], [spans])[0].nll]
    wanted = {
        "acc": sums,
        "acc_norm": [each / len(text[1:]) for each, text in zip(sums, choices, strict=True)],
        "choice": [each / len(target) for each, target in zip(sums, ids[1:], strict=True)],
    }
    for scorer, chances in wanted.items():
        for gold in (0, 1):
            example = Example(id="a", prompt=prompt, answer=choices[gold], choices=choices)
            task = Task(name="t", scorer=scorer, plain=True, test=(example,))
            assert scored(base, task).scores == [float(chances[gold] == max(chances))], scorer


def test_a_plain_task_has_its_own_fingerprint_and_others_keep_theirs() -> None:
    example = Example(id="a", prompt="Rain", answer="wet")
    usual, plain = (Task(name="t", test=(example,), plain=each) for each in (False, True))
    assert usual.fingerprint != plain.fingerprint
    assert usual.fingerprint == "eda3695efc7126e4"


def test_results_of_the_harness(tmp_path: Path) -> None:
    told = {
        "results": {"piqa": {"alias": "piqa", "acc,none": 0.68, "acc_stderr,none": 0.01, "acc_norm,none": 0.7}},
        "model_name": "here",
    }
    place = tmp_path / "run"
    place.mkdir()
    (place / "results_1.json").write_text(json.dumps(told))
    table = wb.read_lm_eval(place)
    assert table["metric"].tolist() == ["acc", "acc_norm"]
    assert table.loc[0, "low"] == pytest.approx(0.68 - 0.0258, abs=1e-3)
    assert table.loc[0, "model"] == "here"
    for wrong in ("{}", "[1]", '{"results": 3}', "no"):
        (tmp_path / "x.json").write_text(wrong)
        with pytest.raises(InvalidInput, match="holds no results"):
            wb.read_lm_eval(tmp_path / "x.json")


def test_bad_files(tmp_path: Path) -> None:
    piqa = written(tmp_path / "p.jsonl", PIQA, {"goal": "x"})
    for ask, sentence in (
        (lambda: wb.read_benchmark("mmlu", piqa), "no benchmark 'mmlu'"),
        (lambda: wb.read_benchmark("piqa", piqa), r"p\.jsonl, line 2.* is not as this benchmark's file has it"),
        (lambda: wb.read_benchmark("arc", piqa), "is not as this benchmark"),
        (lambda: wb.read_benchmark("gsm8k", piqa, shots=3), "never from what is asked"),
        (lambda: wb.read_benchmark("gsm8k", piqa, shots=3, examples=piqa), "never from what is asked"),
        (
            lambda: wb.read_benchmark("hellaswag", written(tmp_path / "h.jsonl", HELLASWAG | {"endings": "ab"})),
            "a list",
        ),
        (lambda: wb.read_benchmark("piqa", written(tmp_path / "q.jsonl", PIQA | {"label": 7})), "is not as this"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            ask()
