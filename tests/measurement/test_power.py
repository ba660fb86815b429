"""How small a change can be seen: by hand, against simulated measurements, and as verdicts and comparisons say it."""

import numpy as np
import pytest

from workbench.core import estimate
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.measurement import power
from workbench.measurement.comparison import Comparison
from workbench.measurement.runs import Run
from workbench.measurement.verdict import verdict

N = 40


def a_run(name: str, **samples: list[float]) -> Run:
    estimates = {"weight_bytes": Estimate.exact(1.0, "bytes")}
    return Run(
        variant=name, source="here", recipe=[], task="t", fingerprint="f", settings={"rounds": 8, "new_tokens": 4},
        environment={"device": "cpu"}, session="s", measured_at="now", samples=samples, estimates=estimates,
    )  # fmt: skip


def test_by_hand() -> None:
    """All of n are lost: McNemar's p is 2 / 2^n, below 0.01 from 8 on. What differs nowhere shows nothing."""
    assert power.of_answers(7, 1.0, 0.0) == 0.0
    assert power.of_answers(8, 1.0, 0.0) == pytest.approx(1.0)
    assert power.needed(lambda n: power.of_answers(n, 1.0, 0.0)) == 8
    assert power.of_answers(100, 0.0, 0.0) == 0.0
    # Of 8 that all differ, all must fall on one side: 0.9^8 + 0.1^8.
    assert power.of_answers(8, 0.8, 1.0) == pytest.approx(0.9**8 + 0.1**8)


def test_a_change_that_is_none_is_seen_as_rarely_as_promised() -> None:
    for n in (20, 60, 300):
        assert power.of_answers(n, 0.0, 0.3) <= 0.01
        assert power.of_answers(n, 0.0, 0.3, confidence=0.999) <= 0.001
        assert power.of_means(n, 0.0, 1.0) == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize(("n", "change", "differing"), [(40, 0.25, 0.35), (120, 0.1, 0.2), (120, 0.15, 0.15)])
def test_answers_against_simulated_ones(n: int, change: float, differing: float) -> None:
    chance, seen = np.random.default_rng(0), 0
    for _ in range(2000):
        won, lost, _ = chance.multinomial(n, [(differing + change) / 2, (differing - change) / 2, 1 - differing])
        seen += estimate.mcnemar(int(won), int(lost)) < 0.01
    assert seen / 2000 == pytest.approx(power.of_answers(n, change, differing), abs=0.04)


@pytest.mark.parametrize(("n", "change"), [(12, 1.1), (40, 0.5)])
def test_means_against_simulated_intervals(n: int, change: float) -> None:
    """The intervals are those that verdicts go by: of a bootstrap, with wider tails where samples are few."""
    chance = np.random.default_rng(1)
    found = [estimate.mean(chance.normal(change, 1.0, n), "x", seed=at) for at in range(300)]
    seen = np.mean([not each.covers(0.0) for each in found])
    assert seen == pytest.approx(power.of_means(n, change, 1.0), abs=0.08)


def test_the_smallest_and_the_fewest_are_on_the_edge() -> None:
    least = power.smallest(lambda change: power.of_answers(N, change, 0.2))
    assert least is not None
    assert power.of_answers(N, least, 0.2) >= power.POWER > power.of_answers(N, 0.98 * least, 0.2)
    fewest = power.needed(lambda n: power.of_means(n, 0.3, 1.0))
    assert fewest is not None
    assert power.of_means(fewest, 0.3, 1.0) >= power.POWER > power.of_means(fewest - 1, 0.3, 1.0)
    assert power.smallest(lambda change: power.of_answers(6, change, 0.2)) is None
    assert power.needed(lambda n: power.of_means(n, 1e-6, 1.0)) is None
    assert power.of_means(5, 9.0, 1.0) == 0.0
    assert power.smallest(lambda change: power.of_means(9, change, 0.0)) == 0.0  # what never differs by chance


def test_verdicts_say_what_they_could_have_seen() -> None:
    right = [1.0] * 20 + [0.0] * 20
    few = [0.0, *right[1:]]
    said = str(verdict(a_run("a", score=right), a_run("b", score=few)))
    least = power.smallest(lambda change: power.of_answers(N, change, 1 / N))
    assert least is not None
    assert f"no measurable quality change, n=40 ({100 * least:.0f} points would show)" in said
    assert "too few to show any" in str(verdict(a_run("a", score=[1.0] * 6), a_run("b", score=[1.0] * 6)))
    times = np.exp(np.random.default_rng(0).normal(0, 0.05, 12)).tolist()
    same = str(verdict(a_run("a", inter_token_median=times), a_run("b", inter_token_median=times[::-1])))
    assert "no measurable difference in speed [" in same
    assert "x would show]" in same
    lines = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.0]
    moved = [each + shift for each, shift in zip(lines, (0.1, -0.1) * 4, strict=True)]
    words = str(verdict(a_run("a", nll=lines, tokens=[1.0] * 8), a_run("b", nll=moved, tokens=[1.0] * 8)))
    assert "no measurable quality change, n=8 (" in words
    assert "% would show)" in words


def test_many_variants_must_be_surer() -> None:
    """With nothing there, one table of 20 variants in 20 shows a difference of some score at most; at 99 % one in 5."""
    assert [round(estimate.among(n), 4) for n in (0, 1, 5, 10, 50)] == [0.99, 0.99, 0.99, 0.995, 0.999]
    chance, wrong = np.random.default_rng(2), 0
    for _ in range(300):
        changes = [estimate.mean(chance.normal(0.0, 1.0, 30), "x", seed=at) for at in range(3)]
        wrong += any(not each.at(estimate.among(50)).covers(0.0) for each in changes)
    assert wrong / 300 < 0.02
    wide = Estimate(value=1.0, low=0.5, high=2.0, n=30, unit="x").at(0.999)
    assert wide.low < 0.5 < 2.0 < wide.high
    base, lost = [1.0] * 30 + [0.0] * 10, [0.0] * 8 + [1.0] * 22 + [0.0] * 10
    assert "score down" in str(verdict(a_run("a", score=base), a_run("b", score=lost)))
    many = Comparison([a_run("a", score=base), *(a_run(f"b{at}", score=lost) for at in range(20))])
    assert many.confidence == pytest.approx(0.9975)
    assert "no measurable quality change" in str(many.verdicts()["b0"])  # 8 of 8: p = 0.008


def test_a_question_is_planned() -> None:
    right = [1.0] * 20 + [0.0] * 20
    other = [0.0, 0.0, *right[2:-2], 1.0, 1.0]
    found = Comparison([a_run("a", score=right), a_run("b", score=other)]).power(change=0.05)
    assert (found.variant, found.metric, found.n) == ("b", "score", N)
    assert found.chance == pytest.approx(power.of_answers(N, 0.05, 0.1))
    assert found.needed is not None
    assert power.of_answers(found.needed, 0.05, 0.1) >= power.POWER
    assert "for 5 points" in str(found)
    nll = np.random.default_rng(0).normal(3.0, 0.2, 16)
    text = Comparison([
        a_run("a", nll=nll.tolist(), tokens=[1.0] * 16),
        a_run("b", nll=(nll + np.random.default_rng(1).normal(0.0, 0.05, 16)).tolist(), tokens=[1.0] * 16),
    ])  # fmt: skip
    said = text.power("b", change=0.01)
    assert said.metric == "perplexity"
    assert said.needed is not None
    assert said.needed > 16
    for wrong, sentence in (
        (lambda: text.power("c"), "no run of 'c'"),
        (lambda: text.power("b", change=0.0), "is a fraction"),
        (lambda: text.power("a"), "compare both on a few first"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            wrong()
