"""The comparison pane without a browser."""

import threading

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
    assert list(pane.plot.figure.data[0].marker.color) == [bench.colour(bench.base.name), bench.colour("Int8")]
    first = pane.plot
    bench.choose("Int8", False)
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert pane.plot is first
    assert len(first.figure.data[0].y) == 1
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
    assert bench.compare.changes.figure.data[0].type == "heatmap"


def test_a_cancelled_comparison_leaves_the_one_before_it(bench: Bench) -> None:
    pane = bench.compare
    pane.rounds.value, pane.tokens.value, pane.examples.value = 50, 64, 2
    drawn = threading.Event()
    pane.report.observe(lambda _: drawn.set(), "value")

    def cancelled() -> None:
        drawn.clear()
        pane.button.click()
        assert drawn.wait(TIMEOUT), "the numbers so far are on screen"
        assert pane.plot.figure.data
        bench.cancel()
        assert bench.wait(TIMEOUT)
        assert "cancelled, nothing was changed" in pane.message.value

    cancelled()
    assert bench.comparison is None
    assert "cancelled or failed" in pane.plot.figure.layout.title.text, "what was seen stays, and says what it is"
    assert "not a result" in pane.report.value
    pane.rounds.value = 2
    pane.button.click()
    assert bench.wait(TIMEOUT)
    whole = pane.plot.value, pane.report.value
    bench.add(bench.base.apply(quantize.Int8()))
    pane.rounds.value = 50
    cancelled()
    assert (pane.plot.value, pane.report.value) == whole
    assert [run.variant for run in bench.comparison.runs] == [bench.base.name]
