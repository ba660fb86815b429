"""The request panels, without a browser: the prompt as it is read, answers before and after, undo."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from screen import TIMEOUT, html

import widgets
import workbench as wb
from widgets import Bench
from widgets.parts import transcript
from widgets.tools.question import Asked
from widgets.tools.recall import Recall
from workbench.answering.request import Passage, Request
from workbench.steps import context, prompt, retrieve

XSS = "<img src=x onerror=alert(1)>"


def bare(shown: str) -> str:
    """The text of a prompt that is shown, without its marks."""
    return unescape(re.sub(r"<[^>]*>", "", shown))


def tool(bench: Bench, family: str) -> Asked:
    return bench.panel(family).tools[Asked]


def test_the_prompt_follows_the_knobs(bench: Bench) -> None:
    panel, asked = bench.panel("prompt"), tool(bench, "prompt")
    panel.set(prompt.System(text="Be brief."))
    assert bench.wait(TIMEOUT)
    shown = bare(asked.prompt.value)
    assert "Be brief." in shown
    assert "How many seats does boat c 0 have?" in shown
    assert "more than without this step" in asked.prompt.value
    assert asked.prompt.value.count("wb-control") == 5
    asked.question.value = XSS
    assert bench.wait(TIMEOUT)
    assert XSS in bare(asked.prompt.value)
    assert XSS not in asked.prompt.value


def test_undo_and_redo_walk_through_the_settings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widgets.tools.question.TOGETHER", 0.0)
    panel, asked = bench.panel("prompt"), tool(bench, "prompt")
    steps = [prompt.System(text="One."), prompt.Constrain(form="words", rule="7"), prompt.Template(text="Q {question}")]
    for each in steps:
        panel.set(each)
    asked.undo.click()
    while panel.step != steps[0]:
        assert not asked.undo.disabled
        asked.undo.click()
    while panel.step != steps[2]:
        assert not asked.redo.disabled
        asked.redo.click()
    assert asked.redo.disabled


def test_a_dragged_slider_is_undone_at_once(bench: Bench) -> None:
    panel, asked = bench.panel("prompt"), tool(bench, "prompt")
    before = panel.step
    for answers in range(2, 9):
        panel.set(prompt.SelfConsistency(answers=answers))
    asked.undo.click()
    assert panel.step == before
    assert asked.undo.disabled
    asked.redo.click()
    assert panel.step == prompt.SelfConsistency(answers=8)


def test_answers_stand_side_by_side_and_are_scored(bench: Bench) -> None:
    panel, asked = bench.panel("prompt"), tool(bench, "prompt")
    panel.set(prompt.Constrain(form="pattern", rule=r"It has 3 seats\."))
    asked.trial.click()
    assert bench.wait(TIMEOUT)
    assert asked.answers.value.count("It has 3 seats.") == 3
    assert "score 1.00" not in asked.answers.value.split("With these settings")[0]
    asked.count.value = 8
    asked.score.click()
    assert bench.wait(TIMEOUT)
    assert "on 8 test examples. First token after" in asked.message.value
    assert "Whole answer after" in asked.message.value
    assert "before:" in asked.message.value
    assert "scored last" not in asked.message.value
    panel.set(prompt.Constrain(form="pattern", rule=r"It has 5 seats\."))
    asked.trial.click()
    asked.score.click()
    assert bench.wait(TIMEOUT)
    last = asked.answers.value.split("<tr>")[2].split("<td>")
    assert ["It has 3 seats." in each for each in last] == [False, False, False, True, False]
    assert "It has 5 seats." in last[4]
    assert "Against the settings scored last: +0.000 [" in asked.message.value


def test_results_of_another_task_are_not_set_beside_these(bench: Bench) -> None:
    panel, asked = bench.panel("prompt"), tool(bench, "prompt")
    for seats in (3, 5):
        panel.set(prompt.Constrain(form="pattern", rule=rf"It has {seats} seats\."))
        asked.trial.click()
        asked.score.click()
        assert bench.wait(TIMEOUT)
        assert "Settings tried last" not in asked.answers.value
        assert "scored last" not in asked.message.value
        bench.use(bench.task.model_copy(update={"instruction": "Answer in one word."}))


def test_a_typed_question_is_answered_before_and_after(bench: Bench) -> None:
    panel, asked = bench.panel("prompt"), tool(bench, "prompt")
    panel.set(prompt.Constrain(form="choices", rule="yes\nno"))
    asked.question.value = XSS
    asked.answer.click()
    assert bench.wait(TIMEOUT)
    assert "first after" in asked.answers.value
    assert re.search("<td>(yes|no)<div>", asked.answers.value)
    assert XSS not in asked.answers.value
    asked.question.value = " "
    asked.answer.click()
    assert bench.wait(TIMEOUT)
    assert "The prompt is empty" in asked.message.value


def test_what_fails_is_said_and_nothing_is_lost(bench: Bench) -> None:
    bench.task = bench.task.model_copy(update={"documents": ""})
    panel, asked = bench.panel("retrieve"), tool(bench, "retrieve")
    asked.show.click()
    assert bench.wait(TIMEOUT)
    assert "No documents are named" in asked.message.value
    panel.tools[Recall].check.click()
    assert bench.wait(TIMEOUT)
    assert "No variant looks anything up" in panel.tools[Recall].message.value
    panel.set(retrieve.Retrieve(documents="no/such/folder"))
    asked.trial.click()
    assert bench.wait(TIMEOUT)
    assert "no/such/folder" in asked.message.value
    assert list(bench.variants) == [bench.base.name]


def test_passages_are_shown_and_measured(base: wb.Variant, tmp_path: Path) -> None:
    home = tmp_path / "task"
    (home / "documents").mkdir(parents=True)
    texts = {"boats": "A ferry has twelve seats.", "bees": f"Bees dance. {XSS}"}
    for name, text in texts.items():
        (home / "documents" / f"{name}.md").write_text(text)
    rows = [
        {"id": "1", "prompt": "How many seats has a ferry?", "answer": "twelve", "document": "boats"},
        {"id": "2", "prompt": "Which insects dance?", "answer": "bees", "document": "bees"},
    ]
    (home / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bench = Bench(base, wb.read_task(home))
    try:
        panel, asked = bench.panel("retrieve"), tool(bench, "retrieve")
        panel.set(retrieve.Retrieve(top_k=2))
        asked.show.click()
        assert bench.wait(TIMEOUT)
        assert "<mark>seats</mark>" in asked.prompt.value
        assert "boats.md" in asked.prompt.value
        assert XSS not in asked.prompt.value
        recall = panel.tools[Recall]
        recall.button.click()
        assert bench.wait(TIMEOUT)
        assert recall.results["hybrid"].recall[1].value == 1.0
        assert recall.results["hybrid"].reciprocal_rank.value == 1.0
        assert "<td>bm25</td>" in recall.table.value
        assert "Reciprocal rank" in html(bench)
        shown = asked.prompt.value
        panel.apply()
        assert bench.wait(TIMEOUT)
        assert asked.prompt.value == shown, "a new variant on the list hides nothing"
        recall.check.click()
        assert bench.wait(TIMEOUT)
        assert "its documents are as they were indexed" in recall.message.value
        (home / "documents" / "bees.md").write_text("Bees sleep.")
        recall.check.click()
        assert bench.wait(TIMEOUT)
        assert (
            "1 of its documents changed since they were indexed (bees.md): apply Retrieve again."
            in recall.message.value
        )
    finally:
        bench.close()


def test_marks_stand_on_whole_words_of_escaped_text() -> None:
    request = Request.of("Seats & <b>?").but(passages=(Passage("<i>", "Seats, <b>seats</b> & unseated"),))
    shown = transcript.passages(request)
    assert "<mark>Seats</mark>, &lt;b&gt;<mark>seats</mark>&lt;/b&gt; &amp; unseated" in shown
    assert "<i>" not in shown
    request = Request.of("What is the seat for?").but(passages=(Passage("a", "the seat for"),))
    assert "the <mark>seat</mark> for<" in transcript.passages(request)


def test_what_is_removed_is_struck_through(bench: Bench) -> None:
    panel, asked = bench.panel("context"), tool(bench, "context")
    asked.question.value = f"Rain. Rain. {XSS}\n\nWhat?"
    panel.set(context.Filter())
    asked.show.click()
    assert bench.wait(TIMEOUT)
    assert re.search(r"<del>\s*Rain.</del>", asked.prompt.value)
    assert XSS not in asked.prompt.value
    asked.question.value = "What?"
    asked.show.click()
    assert bench.wait(TIMEOUT)
    assert "No context to shorten" in asked.prompt.value
    long = [Passage("", "word " * 3000)]
    assert "3000 words of context became 0: too many to show." in transcript.removed(long, [])


def test_panels_by_the_names_people_use(bench: Bench) -> None:
    for name in ("PromptPanel", "RetrievalPanel", "ContextPanel", "OutputPanel"):
        getattr(widgets, name)(bench)
