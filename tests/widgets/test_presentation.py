"""For a projector: the guess is taken first, then the bar appears."""

import pytest
from screen import TIMEOUT, Gate

import workbench as wb
from widgets import Bench
from widgets.panes.guess import sentence
from workbench.core.estimate import Estimate
from workbench.steps import quantize


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def test_a_result_waits_for_the_guess(bench: Bench) -> None:
    name = bench.add(bench.base.apply(quantize.Int8()))
    pane = bench.compare
    pane.rounds.value, pane.tokens.value, pane.examples.value = 6, 2, 2
    bench.present.value = True
    assert "wb-present" in bench.card._dom_classes
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert bench.comparison
    assert pane.results.layout.display == "none"
    assert pane.guess.who.options == (name,)
    pane.guess.times.value = 2.0
    pane.guess.button.click()
    assert pane.results.layout.display is None
    assert "Guessed 2 times as fast; measured" in pane.guess.said.value
    base = 1000 * bench.comparison.runs[0]["inter_token_latency"].value
    assert pane.plot
    guessed = pane.plot.figure.data[-1]
    assert list(guessed.x) == [pytest.approx(base / 2)]
    assert list(guessed.y) == [name]
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert pane.results.layout.display == "none", "every result is guessed anew"
    bench.present.value = False
    assert pane.results.layout.display is None
    assert pane.guess.widget.layout.display == "none"


def test_a_guess_out_of_range_shows_nothing(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    bench.present.value = True
    guess = bench.compare.guess
    guess.times.value = 0
    guess.button.click()
    assert "from 0.1 to 10" in guess.said.value
    assert bench.compare.results.layout.display == "none"


@pytest.mark.parametrize(("guessed", "said"), [(2.0, "too high"), (1.1, "within"), (0.5, "too low")])
def test_the_guess_is_judged_by_the_interval(guessed: float, said: str) -> None:
    assert said in sentence("Int8", guessed, Estimate(value=1.1, low=1.0, high=1.2, n=10, unit="ratio"))


def test_one_variant_is_shown_without_a_guess(bench: Bench) -> None:
    pane = bench.compare
    pane.rounds.value, pane.tokens.value, pane.examples.value = 1, 2, 2
    bench.present.value = True
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert bench.comparison
    assert pane.results.layout.display is None


def test_a_click_that_is_refused_takes_no_guess_away(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    pane = bench.compare
    pane.rounds.value, pane.tokens.value, pane.examples.value = 1, 2, 2
    bench.present.value = True
    gate = Gate(bench)
    pane.button.click()
    pane.guess.button.click()
    pane.button.click()
    assert "under way already" in pane.message.value
    assert pane.guess.taken is not None
    gate.opened.set()
    assert bench.wait(TIMEOUT)
    assert pane.results.layout.display is None
    bench.present.value = False
    assert pane.guess.taken is None
