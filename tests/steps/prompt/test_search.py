"""The search for a prompt: it keeps what scores best on train examples, within its budget."""

from collections.abc import Sequence

import pytest

import workbench as wb
from workbench.answering.request import Generation, Prepared
from workbench.core.errors import InvalidInput
from workbench.steps import prompt

WORDINGS = "{question}\n---\nAnswer in code: {question}\n---\nMagic: {question}"


@pytest.fixture
def asked(tiny_task: wb.Task, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every question, and answers that are right where the prompt holds the word Magic and at least one example."""
    gold, seen = {each.prompt: each.answer for each in (*tiny_task.train, *tiny_task.test)}, []

    def answer(variant: wb.Variant, prompts: Sequence[Prepared], *_: object) -> list[Generation]:
        shown = [each.request for each in prompts]
        seen.extend(each.query for each in shown)
        right = ["Magic" in each.question and len(each.messages) > 1 for each in shown]
        texts = [gold[each.query] if fits else "Fog." for each, fits in zip(shown, right, strict=True)]
        return [Generation(each, (1,), 1, (0.1,), "stop") for each in texts]

    monkeypatch.setattr("workbench.steps.prompt.search.answers", answer)
    return seen


def test_what_scores_best_is_kept(base: wb.Variant, tiny_task: wb.Task, asked: list[str]) -> None:
    step = prompt.Search(wordings=WORDINGS, examples=2, judged=4, trials=20)
    child = base.apply(step, tiny_task)
    request = child.rewritten(tiny_task.test[0].prompt)
    assert request.question == f"Magic: {tiny_task.test[0].prompt}"
    shots = request.messages[:-1]
    assert 2 <= len(shots) <= 4
    tested = {each.prompt for each in tiny_task.test[:4]}
    assert set(asked[-8:]) == tested, "once with and once without what was found"
    judged = set(asked[:-8])
    assert len(judged) == 4
    assert judged <= {each.prompt for each in tiny_task.train}, "no other split is looked at before"
    assert not judged & {each.content.removeprefix("Magic: ") for each in shots}, "no example judges itself"
    assert child.notes[0].endswith("+1.000 [+1.000, +1.000] on 4 test examples not looked at before.")
    assert base.apply(step, tiny_task).encode("Rain?") == child.encode("Rain?"), "seeded"


def test_a_prompt_beyond_the_budget_is_not_tried(base: wb.Variant, tiny_task: wb.Task, asked: list[str]) -> None:
    child = base.apply(prompt.Search(wordings=WORDINGS, judged=4, trials=8, tokens=1), tiny_task)
    assert child.encode("Rain?") == base.encode("Rain?")
    assert child.notes == ("Search: no prompt of the 8 trials fits in 1 tokens: nothing was changed.",)
    assert len(asked) == 4, "only what there was before"


def test_what_is_not_better_changes_nothing(base: wb.Variant, tiny_task: wb.Task, asked: list[str]) -> None:
    child = base.apply(prompt.Search(wordings="Plainly: {question}", judged=4, trials=4), tiny_task)
    assert child.encode("Rain?") == base.encode("Rain?")
    assert child.notes == ("Search: none of 4 trials was better on the train examples: nothing was changed.",)


def test_what_cannot_be_searched_is_refused(base: wb.Variant, tiny_task: wb.Task, tiny_text: wb.Text) -> None:
    with pytest.raises(InvalidInput, match="Every wording needs"):
        prompt.Search(wordings="{question}\n---\nWhat?")
    with pytest.raises(InvalidInput, match="needs questions with answers"):
        base.apply(prompt.Search(), tiny_text)
    chosen = tuple(each.model_copy(update={"choices": (each.answer, "No.")}) for each in tiny_task.test)
    with pytest.raises(InvalidInput, match="answers that are written"):
        base.apply(prompt.Search(), tiny_task.model_copy(update={"scorer": "choice", "test": chosen}))
    with pytest.raises(InvalidInput, match="at least 2"):
        base.apply(prompt.Search(), tiny_task.model_copy(update={"train": tiny_task.train[:1]}))


def test_the_search_works_on_a_real_model(base: wb.Variant, tiny_task: wb.Task, tmp_path) -> None:
    child = base.apply(prompt.Search(trials=3, judged=3), tiny_task)
    again = wb.load(child.save(tmp_path / "export"), device="cpu")
    assert again.encode("Rain?") == child.encode("Rain?")
    assert child.notes
