"""Recipes of a class, ranked; what they hand in is hostile."""

import json
from pathlib import Path

import pytest

import workbench as wb
from workbench.steps import prompt, prune, quantize, retrieve
from workbench.teaching.leaderboard import leaderboard, practice

HOSTILE = "<script>alert(1)</script>\u202e" + "é" * 300


@pytest.fixture
def task(tiny_task: wb.Task) -> wb.Task:
    more = tuple(
        example.model_copy(update={"id": f"{example.id}-{number}"}) for number in range(2) for example in tiny_task.test
    )
    return tiny_task.model_copy(update={"test": more})


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    folder = tmp_path / "submissions"
    folder.mkdir()
    recipes = {
        "Ana": [quantize.Int8()],
        "Bo": [quantize.RTN(bits=2)],
        "Cy": [prune.Magnitude(sparsity=0.0)],
        "Di": [prompt.System(text="<b>Be brief.</b>"), quantize.NF4()],
        "Eve": [retrieve.Retrieve(documents="/")],
        "Kim": [prompt.Search(trials=1000)],
        "Lou": [prompt.System(text="Never say anything about it. " * 200)],
    }
    for name, steps in recipes.items():
        (folder / f"{name}.json").write_text(wb.Recipe(steps).to_json())
    (folder / "Fay.json").write_text('[{"step": "os.system", "command": "true"}]')
    (folder / "Gus.json").write_bytes(b"\xff\xfe\x00")
    (folder / "Hal.json").write_text("[" * 100_000 + "]" * 100_000)
    (folder / "Ida.json").write_text("[]")
    (folder / "Jon.json").write_text(json.dumps([{"step": "quantize.RTN", "bits": 99}]))
    return folder


def test_ranked_by_the_goal_among_those_that_keep_the_bounds(base: wb.Variant, task: wb.Task, handed_in: Path) -> None:
    bounds = {"weight_bytes": "<= 0.9 * baseline", "kl_to_baseline": "<= 100"}
    board = leaderboard(handed_in, base, task, constraints=bounds, rounds=1, new_tokens=2, store=False)
    places = {row[1]: row[0] for row in board.rows}
    assert [row[1] for row in board.rows if row[0] != "–"] == ["Bo", "Ana", "Di"]
    assert places["Cy"] == "–", "it is as large as the baseline"
    sizes = [each.run["weight_bytes"].value for each in board.entries[:3]]
    assert sizes == sorted(sizes)
    why = {each.name: each.why for each in board.entries}
    assert why["Eve"].startswith("retrieve.Retrieve is not allowed here")
    assert why["Kim"].startswith("prompt.Search is not allowed here")
    assert "tokens" in why["Lou"]
    assert "There is no step 'os.system'" in why["Fay"]
    assert "not valid JSON" in why["Gus"]
    assert "no longer than" in why["Hal"]
    assert "1 to 10 steps" in why["Ida"]
    assert "bits is 99" in why["Jon"]
    assert "<b>" not in board._repr_html_()


def test_it_is_measured_on_what_nobody_practised_on(base: wb.Variant, task: wb.Task) -> None:
    board = leaderboard(
        {"Ana": wb.Recipe([quantize.Int8()]).to_json()}, base, task, rounds=1, new_tokens=2, store=False
    )
    seen = practice(base, task)
    assert {each.id for each in seen.test}.isdisjoint({each.id for each in task.test[1::2]})
    held = task.model_copy(update={"test": task.test[1::2]})
    assert board.comparison is not None
    assert board.comparison.baseline.fingerprint == held.fingerprint


def test_hostile_names_are_text(base: wb.Variant, task: wb.Task, tmp_path: Path) -> None:
    recipe = wb.Recipe([quantize.Int8()]).to_json()
    board = leaderboard({HOSTILE: recipe}, base, task, goal="score", rounds=1, new_tokens=2, store=False)
    page = board.save(tmp_path / "board.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "\u202e" not in page
    assert "é" * 300 not in page


def test_what_cannot_be_measured_is_said(base: wb.Variant, task: wb.Task, tiny_text: wb.Text, tmp_path: Path) -> None:
    with pytest.raises(wb.WorkbenchError, match="There is no submission"):
        leaderboard(tmp_path, base, task)
    with pytest.raises(wb.WorkbenchError, match="names a metric"):
        leaderboard({"Ana": "[]"}, base, task, goal="beauty")
    board = leaderboard({"Ana": "[]"}, base, task)
    assert board.comparison is None
    text = tiny_text.model_copy(update={"test": 12, "window": 16})
    recipe = {"Ana": wb.Recipe([quantize.Int8()]).to_json()}
    board = leaderboard(recipe, base, text, goal="score", rounds=1, new_tokens=2, store=False)
    assert board.entries[0].why == "Its score cannot be measured on this task."
    with pytest.raises(wb.WorkbenchError, match="not halved"):
        practice(base, text)  # type: ignore[arg-type]
