"""Conversations in files: what is asked, what was said before, what is the gold answer, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import workbench as wb
from workbench.answering.request import Request
from workbench.core.errors import InvalidInput
from workbench.models.tokens import Message
from workbench.tasks.chat import message
from workbench.training.sequences import read_samples

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "How many seats?"},
    {"role": "assistant", "content": "Twelve."},
]
TURNS = [(each["role"], each["content"]) for each in TALK]
SHARED = {"system": "system", "user": "human", "assistant": "gpt"}
ROWS: dict[str, dict[str, Any]] = {
    "OpenAI": {"messages": TALK},
    "parts": {"messages": [each | {"content": [{"type": "text", "text": each["content"]}]} for each in TALK]},
    "ShareGPT": {"conversations": [{"from": SHARED[role], "value": text} for role, text in TURNS]},
    "system apart": {
        "conversations": [{"from": SHARED[role], "value": text} for role, text in TURNS[1:]],
        "system": "Be brief.",
    },
    "text in a cell": {"messages": json.dumps(TALK)},
    "TRL": {"prompt": TALK[:-1], "completion": TALK[-1:]},
    "answer apart": {"messages": TALK[:-1], "answer": "Twelve."},
    "Alpaca": {
        "instruction": "How many seats?",
        "input": "",
        "output": "Twelve.",
        "history": [["Hi", "Yes?"]],
        "system": "Be brief.",
    },
}


def asked(example: wb.Example) -> list[tuple[str, str]]:
    turns = Request.example(wb.Task(name="t", test=(example,)), example).written()
    return [(each.role, each.content) for each in (*turns, Message(role="assistant", content=example.answer))]


def refusal(row: Any, folder: Path) -> str:
    (folder / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(InvalidInput, match=r"^t\.jsonl, line 1: ") as caught:
        wb.read_task(folder / "t.jsonl")
    return str(caught.value)


@pytest.mark.parametrize("shape", ROWS)
def test_a_conversation_is_the_same_in_every_form(shape: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(ROWS[shape]))
    task = wb.read_task(tmp_path / "t.jsonl")
    assert asked(task.test[0]) == TURNS
    assert len(task.notes) == 1
    assert task.notes[0] in repr(task)


def test_an_input_stands_behind_its_instruction(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([{"instruction": "Sum up.", "input": "Rain fell.", "output": "Rain."}]))
    assert asked(wb.read_task(tmp_path / "t.json").test[0]) == [
        ("user", "Sum up.\n\nRain fell."),
        ("assistant", "Rain."),
    ]


def test_calls_of_tools_stand_between_question_and_answer(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "seats", "arguments": "{}"}}
    row = [
        TALK[1],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12"},
        TALK[4],
    ]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": row, "tools": []}))
    assert asked(wb.read_task(tmp_path / "t.jsonl").test[0]) == [
        ("user", "Hi"),
        ("assistant", '{"name": "seats", "arguments": "{}"}'),
        ("tool", "12"),
        ("assistant", "Twelve."),
    ]


def test_conversations_in_csv_and_parquet(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "messages"], ["a", json.dumps(TALK)]])
    table = pyarrow.Table.from_pylist([{"id": "a", "messages": TALK}])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    by_csv, by_parquet = wb.read_task(tmp_path / "t.csv"), wb.read_task(tmp_path / "t.parquet")
    assert by_csv == by_parquet
    assert asked(by_csv.test[0]) == TURNS


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": TALK[:2]}, "no user's turn that an assistant's turn follows"),
        ({"messages": [{"role": "narrator", "content": "Rain."}]}, "'narrator' is no role"),
        ({"messages": ["Hi"]}, "needs a role"),
        ({"messages": [TALK[1], {"role": "assistant"}]}, "needs a role"),
        ({"messages": "Hi"}, "'messages' holds no list of messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "'image_url'"),
        ({"instruction": "Sum up.", "output": "Rain.", "history": ["Hi"]}, "'history' holds no pairs"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_line(row: Any, told: str, tmp_path: Path) -> None:
    assert told in refusal(row, tmp_path)


def test_a_task_without_conversations_keeps_its_fingerprint() -> None:
    assert wb.read_task(Path(__file__).parents[2] / "data" / "tickets").fingerprint == "44d2960d73173fe2"
    plain = wb.Example(id="a", prompt="Hi", answer="Yes?")
    told = plain.model_copy(update={"history": (Message(role="system", content="Be brief."),)})
    one, other = (wb.Task(name="t", test=(each,)) for each in (plain, told))
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == one.model_copy(update={"notes": ("read as chat",)}).fingerprint
    assert wb.Example.model_validate_json(told.model_dump_json()) == told


def test_what_was_said_before_is_read_in_training_and_in_examples(base: wb.Variant, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": TALK}))
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "Rain?", "answer": "No."}))
    task = wb.read_task(tmp_path)
    (sample,) = read_samples(base, task, "train").samples
    before = base.tokenizer.apply_chat_template(TALK[:-1], add_generation_prompt=True, return_dict=False)
    assert list(sample.ids[: sample.start]) == before
    shown = base.apply(wb.steps.prompt.FewShot(examples=1), task).rewritten(Request.example(task, task.test[0]))
    assert [(each.role, each.content) for each in shown.messages] == [*TURNS[1:], ("user", "Rain?")]


def test_messages_as_programs_write_them() -> None:
    parts = [{"type": "text", "text": "How many"}, {"type": "text", "text": "seats?"}]
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "Ann"}]
    request = Request.of([*talk, {"role": "assistant", "content": "There are"}])
    assert [each.role for each in request.messages] == ["system", "user", "assistant"]
    assert request.question == request.query == "How many\nseats?"
    assert request.but(instruction="Count.").written()[1].content == "Count.\n\nHow many\nseats?"
    assert message({"role": "tool", "content": "12", "tool_call_id": "1"}) == Message(role="tool", content="12")
    for wrong in (
        {"role": "user", "content": "Hi"},
        3,
        ["Hi"],
        [{"role": "user", "content": [{"type": "input_audio"}]}],
    ):
        with pytest.raises(InvalidInput):
            Request.of(wrong)


def test_half_a_character_becomes_the_sign_of_a_lost_one(base: wb.Variant) -> None:
    half = json.loads('"Hi \\ud83d"')
    assert Request.of(half).question == "Hi \ufffd"
    assert wb.Example(id="a", prompt=half, answer=half, choices=(half, "no")).answer == "Hi \ufffd"
    assert base.generate(half, max_new_tokens=1).token_ids
    assert base.apply(wb.steps.prompt.System(text=half)).encode("Rain?")
