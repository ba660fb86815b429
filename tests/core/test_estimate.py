"""Intervals cover what they promise, and verdicts find what is there and nothing else."""

import math

import numpy as np
import pytest

from workbench.core import estimate


def timings(random: np.random.Generator, n: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Paired seconds of one thing measured twice: prompts of many lengths, a slow drift, and rare spikes."""
    prompt = random.lognormal(0.0, 0.5, n)
    drift = 1 + 0.2 * np.sin(np.linspace(0, 3, n) + random.uniform(0, 6))
    measured = []
    for _ in range(2):
        spikes = np.where(random.random(n) < 0.05, random.uniform(1.5, 4.0, n), 1.0)
        measured.append(prompt * drift * random.lognormal(0.0, noise, n) * spikes)
    return measured[0], measured[1]


def test_mean_interval_covers_the_true_mean_of_small_normal_samples() -> None:
    random = np.random.default_rng(1)
    covered = sum(estimate.mean(random.normal(5.0, 2.0, 12), "s").covers(5.0) for _ in range(400))
    assert covered >= 0.97 * 400
    assert covered < 400, "a 99 % interval that never misses in 400 runs is too wide to be one"


def test_mean_interval_has_the_width_of_the_closed_form() -> None:
    samples = np.random.default_rng(2).normal(0.0, 1.0, 200)
    made = estimate.mean(samples, "s")
    half = 2.601 * samples.std(ddof=1) / math.sqrt(200)  # t(0.995, 199)
    assert made.high - made.value == pytest.approx(half, rel=0.1)
    assert made.value - made.low == pytest.approx(half, rel=0.1)


def test_median_of_known_numbers() -> None:
    made = estimate.median([3, 1, 2, 5, 4, 9, 7], "s")
    assert (made.value, made.n, made.unit) == (4.0, 7, "s")
    assert 1 <= made.low <= 4 <= made.high <= 9


def test_quantile_of_known_numbers() -> None:
    assert estimate.quantile(range(101), 0.95, "s").value == pytest.approx(95.0)


def test_constant_samples_have_no_width() -> None:
    made = estimate.median([2.5] * 8, "s")
    assert (made.low, made.value, made.high) == (2.5, 2.5, 2.5)
    assert not made.covers(2.6)


@pytest.mark.parametrize(("freedom", "table"), [(5, 4.032), (10, 3.169), (30, 2.750), (100, 2.626)])
def test_student_t_matches_the_table(freedom: int, table: float) -> None:
    assert estimate.student_t(0.995, freedom) == pytest.approx(table, rel=0.01)


def test_expanded_tail_approaches_the_nominal_one_from_below() -> None:
    tails = [estimate.expanded_tail(n) for n in (6, 12, 50, 10_000)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.005, rel=0.01)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(1, 9, 22 / 1024), (9, 1, 22 / 1024), (0, 5, 2 / 32), (0, 0, 1.0), (5, 5, 1.0), (0, 10, 2 / 1024)],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert estimate.mcnemar(gained, lost) == pytest.approx(p)


def test_mcnemar_with_many_flips_does_not_overflow() -> None:
    assert estimate.mcnemar(3000, 3000) == 1.0
    assert 0 <= estimate.mcnemar(1000, 3000) < 1e-9


def test_paired_ratio_says_how_many_times_slower_the_first_is() -> None:
    before = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert estimate.paired_ratio(2 * before, before).value == pytest.approx(2.0)
    assert estimate.paired_ratio(before, 2 * before).value == pytest.approx(0.5)


def test_unpaired_ratio_says_how_many_times_slower_the_first_is() -> None:
    before = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    made = estimate.unpaired_ratio([4 * value for value in before], before)
    assert made.value == pytest.approx(4.0)
    assert made.low <= 4.0 <= made.high


def test_paired_difference_is_after_minus_before() -> None:
    made = estimate.paired_difference([3.0, 4.0], [1.0, 1.0], "nats/token")
    assert (made.value, made.unit) == (2.5, "nats/token")


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_samples_are_not_enough_and_claim_nothing(n: int) -> None:
    made = estimate.median([1.0] * n, "s")
    assert not made.enough
    assert made.covers(1000.0)


def test_six_samples_are_enough() -> None:
    assert estimate.median([1.0] * 6, "s").enough


@pytest.mark.parametrize("n", [1, 2])
def test_ratios_of_few_samples_claim_nothing(n: int) -> None:
    for made in (estimate.paired_ratio([2.0] * n, [1.0] * n), estimate.unpaired_ratio([2.0] * n, [1.0] * n)):
        assert made.value == pytest.approx(2.0)
        assert not made.enough
        assert made.covers(1.0)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate.median([], "s")


def test_exact_has_no_uncertainty() -> None:
    made = estimate.Estimate.exact(1024, "bytes")
    assert (made.low, made.value, made.high, made.n) == (1024, 1024, 1024, 1)


def test_same_seed_same_interval() -> None:
    samples = np.random.default_rng(3).normal(size=20)
    assert estimate.median(samples, "s", seed=4) == estimate.median(samples, "s", seed=4)
    assert estimate.median(samples, "s", seed=4) != estimate.median(samples, "s", seed=5)


def test_a_thing_against_itself_shows_no_difference() -> None:
    random = np.random.default_rng(5)
    silent = sum(estimate.paired_ratio(*timings(random, 24, noise=0.03)).covers(1.0) for _ in range(100))
    assert silent >= 95


def test_a_true_difference_of_five_percent_is_found() -> None:
    random = np.random.default_rng(6)
    found = 0
    for _ in range(100):
        slow, fast = timings(random, 24, noise=0.01)
        made = estimate.paired_ratio(slow * 1.05, fast)
        found += made.low > 1.0 and made.covers(1.05)
    assert found >= 95
