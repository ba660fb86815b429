"""The queueing model against closed forms, an exact recursion and cases worked out by hand."""

from math import factorial

import numpy as np
import pytest

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.measurement.batching import Batching
from workbench.runtime.asks import Ask
from workbench.runtime.decoding import Decoding
from workbench.runtime.running import ALONE, CHUNK, Running
from workbench.serving.queueing import Load, capacity, forecast, summary
from workbench.serving.simulation import POLICIES, Trace, simulate
from workbench.serving.times import ServiceTimes

G = 0.002  # seconds from token to token, of which a mean answer of 501 tokens has 500: one second
MEAN = 500
Mean = tuple[float, float]  # and its standard error
FIFO = ServiceTimes(read=((1, 0.0),), gap=((1, G),), rows=1, waiting=10**6)
SHARED = ServiceTimes(read=((1, 0.0),), gap=((1, G), (500, 500 * G)), rows=500, waiting=10**6)


def exponential(chance: np.random.Generator, count: int) -> np.ndarray:
    return np.maximum(1, np.rint(chance.exponential(MEAN, count))).astype(int)


def fixed(_: np.random.Generator, count: int) -> np.ndarray:
    return np.full(count, MEAN)


def mixed(chance: np.random.Generator, count: int) -> np.ndarray:
    """Nine short answers to a long one: a squared coefficient of variation of 2.25."""
    return np.where(chance.random(count) < 0.9, MEAN // 2, MEAN * 11 // 2)


def run(times: ServiceTimes, rate: float, lengths, seed: int, requests: int = 6_000, **options) -> Trace:
    chance = np.random.default_rng((seed, 7))
    arrivals = np.cumsum(chance.exponential(1 / rate, requests))
    return simulate(times, arrivals, np.ones(requests, int), 1 + lengths(chance, requests), seed=seed, **options)


def mean_of(quantity, times: ServiceTimes, rate: float, lengths, repetitions: int = 8, **options) -> Mean:
    """Mean over repetitions and its standard error, the beginning left out."""
    runs = [run(times, rate, lengths, seed, **options) for seed in range(repetitions)]
    found = np.array([np.nanmean(quantity(each)[1000:]) for each in runs])
    return float(found.mean()), float(found.std(ddof=1) / repetitions**0.5)


def waited(trace: Trace) -> np.ndarray:
    return trace.first - trace.arrival


def stayed(trace: Trace) -> np.ndarray:
    return trace.end - trace.arrival


def near(found: Mean, expected: float, bias: float = 0.01) -> bool:
    """Within four standard errors and what whole passes and the beginning may do."""
    return abs(found[0] - expected) < 4 * found[1] + bias * expected


def erlang_c(servers: int, offered: float) -> float:
    """The share that waits with so many servers (Erlang 1917)."""
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize("load", [0.3, 0.7])
@pytest.mark.parametrize(("lengths", "second"), [(exponential, 2.0), (fixed, 1.0), (mixed, 0.9 / 4 + 0.1 * 5.5**2)])
def test_one_row_waits_as_pollaczek_and_khinchine_say(lengths, second: float, load: float) -> None:
    """M/M/1, M/D/1 and M/G/1: the mean wait is rate x E[S^2] / 2 (1 - load)."""
    scale = float(lengths(np.random.default_rng(0), 200_000).mean()) / MEAN
    rate = load / scale
    assert near(mean_of(waited, FIFO, rate, lengths), rate * second / 2 / (1 - load), bias=0.02)


def test_one_row_waits_exactly_as_lindley_says() -> None:
    """A wait is the wait before it, and its service, less the time between the arrivals, if that is above 0."""
    trace = run(FIFO, 0.8, exponential, seed=3)
    service, expected = (trace.answers - 1) * G, np.zeros(len(trace.arrival))
    for at in range(1, len(expected)):
        between = trace.arrival[at] - trace.arrival[at - 1]
        expected[at] = max(0.0, expected[at - 1] + service[at - 1] - between)
    np.testing.assert_allclose(waited(trace), expected, atol=1e-8)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (5, 0.8)])
def test_rows_that_do_not_disturb_each_other_are_servers(servers: int, load: float) -> None:
    """M/M/c: a replica whose passes take as long whatever the rows; a token is waited for at the edge of a pass."""
    times = FIFO.but(rows=servers)
    expected = erlang_c(servers, servers * load) / (servers * (1 - load))
    assert near(mean_of(waited, times, servers * load, exponential), expected + G / 2, bias=0.02)


def test_what_finds_no_row_is_refused_as_erlang_says() -> None:
    """M/M/c/c: with 3 servers and 2 erlangs offered, 4/19 are lost (Erlang B)."""
    times = FIFO.but(rows=3, waiting=0)
    found = mean_of(lambda trace: np.isnan(trace.end), times, 2.0, exponential)
    assert near(found, 4 / 19)


@pytest.mark.parametrize("lengths", [fixed, exponential, mixed])
def test_rows_that_share_are_processor_sharing(lengths) -> None:
    """M/G/1-PS: whatever the lengths, one stays 1 / (1 - load) times as long as alone, and who is longer, longer."""
    scale = float(lengths(np.random.default_rng(0), 200_000).mean()) / MEAN
    found = mean_of(stayed, SHARED, 0.6 / scale, lengths)
    assert near(found, scale / (1 - 0.6), bias=0.02)
    slowed = mean_of(lambda trace: stayed(trace) / G / (trace.answers - 1), SHARED, 0.6 / scale, lengths)
    assert near(slowed, 1 / (1 - 0.6), bias=0.03)


def test_routers_by_their_closed_forms() -> None:
    """At random each replica is M/M/1; in turn two are E2/M/1; two choices of many are Mitzenmacher's (1996)."""
    load = 0.7
    assert near(mean_of(stayed, FIFO, 2 * load, exponential, replicas=2, policy="random"), 1 / (1 - load), 0.02)
    root = 0.5  # of x = (2 load / (2 load + 1 - x))^2, by which an arrival of E2/M/1 finds a server busy
    for _ in range(200):
        root = (2 * load / (2 * load + 1 - root)) ** 2
    turn = mean_of(stayed, FIFO, 2 * load, exponential, replicas=2, policy="round robin")
    assert near(turn, 1 / (1 - root), 0.02)
    two = mean_of(
        stayed, FIFO, 100 * load, exponential, repetitions=3, requests=20_000, replicas=100,
        policy="power of two choices",
    )  # fmt: skip
    assert near(two, sum(load ** (2**i - 2) for i in range(1, 8)), 0.03)
    least = mean_of(stayed, FIFO, 2 * load, exponential, replicas=2, policy="least loaded")
    pooled = erlang_c(2, 2 * load) / (2 * (1 - load)) + 1
    assert pooled < least[0] < turn[0]


def test_littles_law_as_arrivals_see_it() -> None:
    """Poisson arrivals find as many requests as rate x time says."""
    times = ServiceTimes(read=((1, 0.01), (400, 0.4)), gap=((1, 0.03), (8, 0.06)), rows=8, waiting=10**6)
    load = Load(rate=2.0, prompts=(20, 400, 100), answers=(10, 60, 30))
    trace = simulate(times, *load.drawn(30_000, 1), replicas=2)
    ends = np.sort(trace.end)
    there = np.arange(len(ends)) - np.searchsorted(ends, trace.arrival)
    assert there[3000:].mean() == pytest.approx(2.0 * stayed(trace)[3000:].mean(), rel=0.05)


TIMES = ServiceTimes(
    read=((1, 0.1), (101, 1.1)), gap=((1, 0.5), (2, 0.7), (3, 1.0)), rows=2, waiting=1, chunk=64, overhead=0.25
)


def test_light_load_by_hand() -> None:
    """Alone, a prompt of 51 takes 0.6 s and four more tokens 2 s; the overhead comes on top."""
    trace = simulate(TIMES, np.array([0.0, 100.0]), np.array([51, 51]), np.array([5, 1]))
    np.testing.assert_allclose(trace.first - trace.arrival, [0.85, 0.85])
    np.testing.assert_allclose(trace.end - trace.arrival, [2.85, 0.85])
    assert trace.busy == pytest.approx((2.6 + 0.6,))


def test_passes_by_hand() -> None:
    """The second is read behind the pass it came in, in two pieces with a pass of the first between them."""
    trace = simulate(TIMES, np.array([0.0, 0.8]), np.array([51, 91]), np.array([5, 3]))
    # 0.6 read; 1.1 token 2; 64 tokens 0.73 until 1.83; 2.33 token 3; 27 more tokens 0.27, behind another pass over the
    # weights of 0.5, until 3.1, first token of the second; both 3.8; both 4.5, where the first has 5 and the second 3.
    np.testing.assert_allclose(trace.first, [0.85, 3.35])
    np.testing.assert_allclose(trace.end, [4.75, 4.75])


def test_a_full_replica_refuses() -> None:
    """Two rows and one that waits: the fourth is refused, and the third has its row when one ends."""
    trace = simulate(TIMES.but(overhead=0.0), np.array([0.0, 0.01, 0.02, 0.03]), np.array([1] * 4), np.array([3] * 4))
    assert np.isnan(trace.end).tolist() == [False, False, False, True]
    # 0.1 read first; 0.6 a token of it; 0.7 second read (two rows are all that may be); 1.4: the first ends
    np.testing.assert_allclose(trace.first[:3], [0.1, 0.7, 1.5])
    assert trace.end[0] == pytest.approx(1.4)


def test_contention_and_a_slow_replica_by_hand() -> None:
    """Two that are busy are each twice as slow, only while both are; a slow one is so always."""
    times = ServiceTimes(read=((1, 0.0),), gap=((1, 1.0),), rows=1, contention=(1.0, 2.0))
    arrivals, prompts, answers = np.array([0.0, 2.0]), np.array([1, 1]), np.array([5, 3])
    trace = simulate(times, arrivals, prompts, answers, replicas=2, policy="round robin")
    # At 2 the first has 2 of its 4 s left, which take 4; the second needs as long.
    np.testing.assert_allclose(trace.end, [6.0, 6.0])
    alone = times.but(contention=())
    trace = simulate(alone, arrivals, prompts, answers, replicas=2, policy="round robin", slower=(3.0,))
    np.testing.assert_allclose(trace.end, [12.0, 4.0])


class Follower:
    """Follows an answer of so many tokens, whatever they are."""

    watches = False

    def __init__(self, tokens: int) -> None:
        self.left, self.heard = tokens, 0

    @property
    def ended(self) -> bool:
        return self.left <= 0

    def restrict(self, logits: object) -> None:
        """Any token may come."""

    def take(self, token: int, chance: float | None = None) -> None:
        self.left -= 1
        self.heard += 1


def test_the_engine_itself_on_a_clock_of_its_own(base: wb.Variant) -> None:
    """The real batch answers, and every pass moves a clock by what it takes: tokens come when they are simulated."""
    times = ServiceTimes(read=((1, 0.25), (1001, 5.25)), gap=((1, 0.5), (4, 0.8)), rows=4)
    load = Load(rate=0.25, prompts=(9, 30, 61, 150, 300), answers=(1, 5, 12, 20, 8))
    arrivals, prompts, answers = load.drawn(60, 3)
    running, now, coming = Running(base.model, 4), 0.0, 0
    followers = [Follower(each) for each in answers]
    asks = [
        Ask([(7 * at + each) % 300 + 5 for each in range(length)], Decoding(max_new_tokens=64), follower)
        for at, (length, follower) in enumerate(zip(prompts.tolist(), followers, strict=True))
    ]
    first, end = np.full(60, np.nan), np.full(60, np.nan)
    done = total = 0
    while coming < 60 or running.busy:
        if not running.busy:
            now = max(now, arrivals[coming])
        while coming < 60 and arrivals[coming] <= now:
            running.join([asks[coming]])
            coming += 1
        waiting, rows = list(running.waiting), len(running.going)
        running.step()
        if running._just_read:
            chosen = [len(each.ids) for each in waiting if each not in running.waiting]
            done, total = (0, max(chosen) * len(chosen)) if chosen else (done, total)
            before, done = done, min(total, done + (CHUNK if rows else ALONE))
            now += float(times.reading(done)) - (float(times.reading(before)) if before else 0.0)
            now += float(times.token(1)) if before and rows else 0.0  # a further piece beside others
        else:
            now += float(times.token(rows))
        for at, follower in enumerate(followers):
            first[at] = now if follower.heard and np.isnan(first[at]) else first[at]
            end[at] = now if follower.ended and np.isnan(end[at]) else end[at]
    trace = simulate(times, arrivals, prompts, answers)
    assert not np.isnan(first + end).any()
    assert trace.busy[0] > 0.7 * end.max()  # there was something to queue for
    np.testing.assert_allclose(trace.first, first)
    np.testing.assert_allclose(trace.end, end)


def test_capacity_by_hand_and_what_is_above_it() -> None:
    """A request of 64 tokens and 10 of answer takes 0.4 + 9 x 0.1 s."""
    load = Load(rate=0.5, prompts=(64,), answers=(10,))
    one = ServiceTimes(read=((64, 0.4),), gap=((1, 0.1),), rows=1, waiting=5)
    assert capacity(one, load) == pytest.approx(1 / 1.3, rel=0.01)
    assert capacity(one, load, 3, slower=(2.0,)) == pytest.approx(2.5 / 1.3, rel=0.01)
    assert capacity(one.but(contention=(1.0, 1.6)), load, 2) == pytest.approx(2 / 1.3 / 1.6, rel=0.01)
    above = forecast(one, load.but(rate=2.0), replicas=2, requests=400, repetitions=3)
    assert not above.stable
    assert "more than 2 replicas can answer" in str(above)
    assert "at least 3 replicas" in str(above)
    # What is not refused is what the capacity lets through.
    assert 1 - above["refused"].value == pytest.approx(above.capacity / 2.0, rel=0.05)
    below = forecast(one, load, replicas=2, requests=400, repetitions=3)
    assert below.stable
    assert "95 % of the first tokens" in str(below)


def test_a_forecast_repeats_itself_and_has_intervals() -> None:
    times = ServiceTimes(read=((1, 0.01), (400, 0.4)), gap=((1, 0.03), (8, 0.06)), rows=8)
    load = Load(rate=1.0, prompts=(20, 400, 100), answers=(10, 60, 30))
    found = forecast(times, load, 2, requests=500)
    assert found.estimates == forecast(times, load, 2, requests=500).estimates
    assert all(each.low <= each.value <= each.high for each in found)
    assert found["ttft p50"].value < found["ttft p95"].value < found["ttft p99"].value
    assert found["ttft p95"].n == 10
    assert "latency p99" in found.table().index
    # The work of a request is the same wherever it is done.
    assert found["rows"].value == pytest.approx(
        forecast(times, load.but(rate=0.5), 1, requests=500)["rows"].value, rel=0.2
    )


def test_utilisation_is_the_load() -> None:
    trace = run(FIFO, 0.6, exponential, seed=1, requests=30_000)
    assert summary(trace)["utilisation"] == pytest.approx(0.6, rel=0.03)


def batching_of(sizes: tuple[int, ...], gaps: tuple[float, ...], first: float) -> Batching:
    def exact(values: tuple[float, ...], unit: str) -> tuple[Estimate, ...]:
        return tuple(Estimate.exact(value, unit) for value in values)

    rates = tuple(size / gap for size, gap in zip(sizes, gaps, strict=True))
    gain = tuple(rate / rates[0] for rate in rates)
    firsts = tuple(first * size for size in sizes)
    return Batching(
        "a", sizes, exact(rates, "tokens/s"), exact(gaps, "s"), exact(firsts, "s"), exact(gain, "ratio"), (2, 2, 2)
    )


def test_times_from_a_measured_curve() -> None:
    times = ServiceTimes.measured(batching_of((1, 2, 4), (0.03, 0.04, 0.06), 0.3), prompt_tokens=91, waiting=7)
    assert times.token(3) == pytest.approx(0.05)
    assert times.token(6) == pytest.approx(0.08)
    assert times.reading(1) == pytest.approx(0.03)
    assert times.reading(46) == pytest.approx(0.165)
    assert times.reading(181) == pytest.approx(0.57)
    assert (times.rows, times.waiting) == (4, 7)
    with pytest.raises(InvalidInput, match="one request at once"):
        ServiceTimes.measured(batching_of((2, 4), (0.04, 0.06), 0.3), prompt_tokens=91)


def samples_of(trace: Trace, prompts: np.ndarray) -> list[tuple[float, ...]]:
    columns = (trace.arrival, trace.first, trace.end, prompts, trace.answers, trace.replica)
    return [tuple(map(float, row)) for row in zip(*columns, strict=True)]


def test_times_are_found_again_in_what_they_made() -> None:
    """Fitted to answers of known times, a little of the measuring added: the times come back."""
    times = ServiceTimes(read=((20, 0.05), (220, 0.25)), gap=((1, 0.03), (2, 0.04), (4, 0.05), (8, 0.08)), rows=8)
    chance = np.random.default_rng(0)
    drawn = [Load(rate=rate, prompts=(20, 60, 120, 220), answers=(20, 40, 80)).drawn(250, 1) for rate in (0.3, 2.0)]
    arrivals = np.concatenate([drawn[0][0], drawn[0][0][-1] + 60 + drawn[1][0]])
    prompts, answers = (np.concatenate([each[at] for each in drawn]) for at in (1, 2))
    trace = simulate(times, arrivals, prompts, answers)
    noisy = Trace(trace.arrival, trace.first, trace.end + chance.exponential(0.001, 500), answers, trace.replica, ())
    found = ServiceTimes.fitted(samples_of(noisy, prompts), rows=8)
    np.testing.assert_allclose(found.reading(np.array([20, 120, 220])), [0.05, 0.15, 0.25], rtol=0.03)
    np.testing.assert_allclose(found.token(np.array([1, 2, 4])), [0.03, 0.04, 0.05], rtol=0.1)


def test_contention_is_found_again() -> None:
    times = ServiceTimes(read=((20, 0.05), (220, 0.25)), gap=((1, 0.03), (4, 0.05)), rows=8)
    load = Load(rate=0.8, prompts=(20, 60), answers=(20, 40, 80))
    arrivals, prompts, answers = load.drawn(500, 2)
    trace = simulate(times.but(contention=(1.0, 1.5)), arrivals, prompts, answers, replicas=2)
    found = times.contended(samples_of(trace, prompts), 2)
    np.testing.assert_allclose(found.contention, (1.0, 1.5), rtol=0.07)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Load(rate=-1, prompts=(1,), answers=(1,)), "rate is -1"),
        (lambda: Load(rate=1, prompts=(), answers=(1,)), "lengths of prompts"),
        (lambda: Load(rate=1, prompts=(0,), answers=(1,)), "at least 1 token"),
        (lambda: ServiceTimes(read=(), gap=((1, 0.1),)), "points"),
        (lambda: ServiceTimes(read=((1, 0.1),), gap=((1, 0.0),)), "some time must pass"),
        (lambda: ServiceTimes(read=((1, 0.1),), gap=((1, 0.2), (2, 0.1))), "must not fall"),
        (lambda: ServiceTimes(read=((1, 0.1),), gap=((1, float("nan")),)), "gap"),
        (lambda: forecast(FIFO, Load(rate=1, prompts=(1,), answers=(1,)), replicas=0), "replicas is 0"),
        (lambda: forecast(FIFO, Load(rate=1, prompts=(1,), answers=(1,)), policy="x"), "no policy 'x'"),
        (lambda: forecast(FIFO.but(contention=(1.0,)), Load(rate=1, prompts=(1,), answers=(1,)), 2), "for 1 replicas"),
        (lambda: ServiceTimes.fitted([(0, 1)]), "six numbers"),
        (lambda: ServiceTimes.fitted([(0, 1, 2, 3, 4, 0)]), "at least 4"),
        (lambda: ServiceTimes.fitted([(0, float("nan"), 2, 3, 4, 0)] * 5), "six numbers"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(wrong, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        wrong()
    assert "\n" not in str(refused.value)


def test_every_policy_answers_everybody() -> None:
    load = Load(rate=3.0, prompts=(20, 400, 100), answers=(10, 1, 30))
    times = ServiceTimes(read=((1, 0.01), (400, 0.4)), gap=((1, 0.03), (8, 0.06)), rows=8, waiting=10**6)
    for policy in POLICIES:
        trace = simulate(times, *load.drawn(2000, 0), replicas=3, policy=policy)
        assert not np.isnan(trace.end).any()
        assert (np.bincount(trace.replica, minlength=3) > 300).all()
