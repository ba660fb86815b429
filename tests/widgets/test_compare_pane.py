"""The comparison pane without a browser."""

import pytest
from screen import TIMEOUT

import workbench as wb
from widgets import Bench
from workbench.steps import quantize


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def test_compare_draws_and_keeps_the_result(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    pane = bench.compare
    pane.rounds.value, pane.tokens.value, pane.examples.value = 2, 2, 2
    pane.visible = True
    pane.show_estimate()
    assert bench.wait(TIMEOUT)
    assert "judging by" in pane.estimate.value
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert "Measured" in pane.message.value, pane.message.value
    assert [run.variant for run in bench.comparison.runs] == [bench.base.name, "Int8"]
    assert "Int8" in pane.report.value
    assert list(pane.figure.data[0].marker.color) == [bench.colour(bench.base.name), bench.colour("Int8")]
    first = pane.figure
    bench.choose("Int8", False)
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert pane.figure is first
    assert len(first.data[0].y) == 1
    assert len(wb.RunStore("runs/runs.jsonl")) == 3


def test_compare_without_a_task_says_so(base: wb.Variant) -> None:
    bench = Bench(base)
    bench.compare.button.click()
    assert "no task" in bench.compare.message.value
    bench.close()


def test_what_changed_is_drawn(bench: Bench) -> None:
    bench.compare.diff.click()
    assert "Tick two" in bench.compare.message.value
    bench.add(bench.base.apply(quantize.Int8()))
    bench.compare.diff.click()
    assert bench.wait(TIMEOUT)
    assert bench.compare.changes.data[0].type == "heatmap"
