"""The step Retrieve: passages before the question, within a budget, cited, told when they changed."""

import json
import shutil
from pathlib import Path

import pytest
from library import QUESTIONS, TEXTS

import workbench as wb
from workbench.answering.request import Generation, Passage, Request, slot
from workbench.core.errors import InvalidInput
from workbench.steps import retrieve


def test_retrieved_passages_are_read_before_the_question(base: wb.Variant, folder: Path, tmp_path: Path) -> None:
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=1))
    request = child.rewritten("How many seats does the ferry have?")
    assert [each.id for each in request.passages] == ["boats.md"]
    assert TEXTS["boats"] in child.tokenizer.decode(child.encode("How many seats does the ferry have?"))
    answer = child.generate("How many seats does the ferry have?", max_new_tokens=2)
    assert [each.id for each in answer.passages] == ["boats.md"]
    again = wb.load(child.save(tmp_path / "export"), device="cpu")
    assert again.encode(QUESTIONS[0]) == child.encode(QUESTIONS[0])


def test_the_budget_is_kept(base: wb.Variant, folder: Path) -> None:
    size = len(base.tokenizer(slot(Passage("boats.md", TEXTS["boats"])))["input_ids"])
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=6, budget=size + 1))
    assert [each.id for each in child.rewritten(QUESTIONS[0]).passages] == ["boats.md"]
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=6, budget=16))
    request = child.rewritten(QUESTIONS[0])
    assert request.passages == ()
    assert request.notes == ("Retrieve: the best passage is longer than the budget of 16 tokens: none is shown.",)


def test_the_documents_of_the_task_are_taken(base: wb.Variant, folder: Path, tiny_task: wb.Task, tmp_path) -> None:
    home = tmp_path / "task"
    home.mkdir()
    (home / "test.jsonl").write_text(json.dumps({"id": "1", "prompt": QUESTIONS[0], "answer": "12"}))
    folder.rename(home / "documents")
    task = wb.read_task(home)
    child = base.apply(retrieve.Retrieve(), task)
    assert child.rewritten(Request.example(task, task.test[0])).passages[0].id == "boats.md"
    with pytest.raises(InvalidInput, match="No documents are named"):
        base.apply(retrieve.Retrieve(), tiny_task.model_copy(update={"documents": ""}))


def test_an_emptied_cache_is_filled_again(base: wb.Variant, folder: Path, tmp_path: Path) -> None:
    child = base.apply(retrieve.Retrieve(documents=str(folder), top_k=1))
    wanted = child.encode(QUESTIONS[0])
    shutil.rmtree(tmp_path / "cache")
    assert child.encode(QUESTIONS[0]) == wanted
    assert child.rewritten(QUESTIONS[0]).notes == ()
    (folder / "boats.md").write_text("A ferry has thirteen seats.")
    assert child.stages[-1].stale() == ["boats.md"]
    base.apply(retrieve.Retrieve(documents=str(folder), top_k=1))
    assert child.rewritten(QUESTIONS[0]).notes == ("Retrieve: the documents have changed since this variant was made.",)


def test_what_an_answer_cites_is_checked(base: wb.Variant, folder: Path) -> None:
    lookup = base.apply(retrieve.Retrieve(documents=str(folder), top_k=1, cite=True)).stages[-1]
    shown = (Passage("boats.md", ""),)
    for text, note in {
        "Twelve [boats.md].": "Retrieve: the answer cites boats.md.",
        "Twelve [boats.md, boats.md].": "Retrieve: the answer cites boats.md.",
        "Twelve.": "Retrieve: the answer cites no document.",
        "Twelve [bees.md].": "Retrieve: the answer cites [bees.md], which it was not shown.",
    }.items():
        assert lookup.finish([Generation(text, (1,), 1, (0.1,), "stop", passages=shown)])[0].notes == (note,)
