"""The search pane without a browser: set, search, take a trial, give something up."""

from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from widgets.panes.search import Search
from workbench.tasks.task import Example


@pytest.fixture
def bench_task(tiny_task: wb.Task) -> wb.Task:
    made = [Example(id=f"q{n}", prompt=f"How many seats does boat {n} have?", answer=f"{n} seats") for n in range(16)]
    return tiny_task.model_copy(update={"test": tuple(made)})


def test_a_search_from_goal_to_variant(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pane: Search = bench.search
    assert "wb.search(base, task, goal='weight_bytes'" in pane.code.value
    assert pane.take.disabled
    pane.add("0")
    assert "Nothing was searched yet" in pane.message.value
    pane.loosen()
    assert "Nothing was searched yet" in pane.message.value
    pane.budget.value = "soon"
    pane.run()
    assert bench.wait(60)
    assert "The budget is a time" in pane.message.value
    pane.families.value = ("quantize",)
    pane.budget.value = "30s"
    pane.bounds[1][0].value, pane.bounds[1][1].value = "score", ">= 0.0 * baseline"
    pane.run()
    assert bench.wait(240)
    assert pane.found is not None
    assert pane.found.trials
    assert pane.found.promises
    assert "the answer is below" in pane.message.value
    assert "on unseen examples" in pane.answer.value
    assert len(pane.place.children) == 1
    assert "Confirmed on examples" in pane.answer.value
    assert "wb.deploy(best" in pane.code.value
    number = pane.found.best.number
    pane.add(str(number))
    assert bench.wait(60)
    assert f"trial {number}" in bench.variants
    pane.loosen()
    assert "Giving up" in pane.gain.value
    pane.add("99999")
    assert bench.wait(60)
    assert "There is no trial 99999" in pane.message.value
    clicked = next(trace for trace in pane.plot.figure.data if trace.name == "front")
    pane.plot._heard(None, {"cell": [list(pane.plot.figure.data).index(clicked), 0]}, None)
    assert bench.wait(60)
    assert f"trial {clicked.customdata[0]}" in bench.variants
    pane.plot._heard(None, {"cell": [0, 10**6]}, None)


def test_bounds_that_make_no_sense_are_said(bench: Any) -> None:
    pane: Search = bench.search
    pane.bounds[0][1].value = "about nine"
    pane.run()
    assert bench.wait(60)
    assert "is said as in" in pane.message.value
