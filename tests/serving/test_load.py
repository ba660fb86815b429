"""Load tests: what is made of what requests waited, and that every request is accounted for."""

import threading
from typing import Any

import numpy as np
import pytest
from servers import Handler, says

import workbench as wb
from workbench.core.errors import Cancelled, InvalidInput
from workbench.serving.load import _arrivals
from workbench.serving.sent import Sent, Stage


def stage(*sent: Sent, targets: tuple[float, float] = (1.0, 0.2)) -> Stage:
    return Stage("mine", "rate", 2.0, 10.0, sent, targets)


def test_what_a_request_waited_counts_from_when_it_came() -> None:
    late = Sent(due=1.0, first=4.0, end=6.0, answer_tokens=5)  # it was sent long after it came
    assert (late.ttft, late.latency, late.gap) == (3.0, 5.0, 0.5)
    assert Sent(due=1.0, first=None, end=1.5, error="refused").ttft == 0.5


def test_percentiles_throughput_and_goodput() -> None:
    times = np.random.default_rng(0).exponential(1.0, 200)
    sent = [Sent(due=float(n), first=n + t, end=n + t + 0.4, answer_tokens=5) for n, t in enumerate(times)]
    sent += [Sent(due=200.0, first=None, end=200.0, error="refused")] * 50
    found = stage(*sent)
    for percent in (50, 95, 99):
        assert found.percentile("ttft", percent).value == pytest.approx(np.quantile(times, percent / 100))
    spent = max(each.end for each in sent)
    assert found.throughput == pytest.approx(200 * 5 / spent)
    good = int((times <= 1.0).sum())
    assert found.goodput.value == pytest.approx(good / spent)
    assert found.errors == {"refused": 50}
    assert found.row()["errors"] == 50
    assert stage(*sent, targets=(1e9, 0.05)).goodput.value == 0  # a token every tenth of a second is too slow


def test_nothing_answered() -> None:
    found = wb.LoadTest((stage(Sent(due=0.0, first=None, end=0.1, error="refused")),))
    assert "nothing was answered; 1 refused" in str(found)
    assert "–" in found.html()
    assert found.figure().data
    assert found.timeline().data
    assert found.table()["latency_p95"].isna().all()


def test_stages_follow_each_other_as_samples() -> None:
    sent = [Sent(0.5, 1.0, 2.0, 7, 3, "a"), Sent(0.7, None, 3.0, error="refused"), Sent(1.0, 1.5, 4.0, 9, 5, "b")]
    stages = [Stage(name, "rate", 1.0, 5.0, tuple(sent), (1.0, 0.2)) for name in ("one", "two")]
    found = wb.LoadTest(tuple(stages))
    assert found.samples == [
        (0.5, 1.0, 2.0, 7, 3, 0),
        (1.0, 1.5, 4.0, 9, 5, 1),
        (5.5, 6.0, 7.0, 7, 3, 2),
        (6.0, 6.5, 9.0, 9, 5, 3),
    ]
    assert found.seen == wb.Load(rate=0.6, prompts=(7, 9, 7, 9), answers=(3, 5, 3, 5))  # 6 that came in 10 s


def test_a_level_is_told_while_it_goes_on(base: wb.Variant, tiny_task: wb.Task) -> None:
    seen: list[wb.LoadTest] = []
    wb.load_test(base, tiny_task, concurrency=1, seconds=2.5, new_tokens=2, on_update=seen.append)
    assert len(seen) >= 2
    assert len(seen[0].stages[0].sent) < len(seen[-1].stages[0].sent)


def test_arrivals_are_those_of_independent_users() -> None:
    times = np.array(_arrivals(50.0, 200.0, seed=1))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    assert _arrivals(50.0, 200.0, seed=1) == times.tolist()
    assert _arrivals(1e-9, 1.0, seed=1) == [0.0]


def test_every_request_is_accounted_for(base: wb.Variant, tiny_task: wb.Task) -> None:
    seen: list[wb.LoadTest] = []
    done = threading.Event()
    found = wb.load_test(
        base,
        tiny_task,
        rate=30,
        concurrency=(1, 3),
        seconds=0.4,
        new_tokens=3,
        at={0.1: done.set},
        on_update=seen.append,
    )
    assert done.is_set()
    assert [(each.kind, each.level) for each in found.stages] == [("rate", 30), ("concurrency", 1), ("concurrency", 3)]
    assert len(found.stages[0].sent) == len(_arrivals(30, 0.4, 0))
    assert all(each.answer_tokens == 3 and not each.error for each in found.stages[0].sent)
    assert all(each.due <= each.first <= each.end for part in found.stages for each in part.sent)
    assert list(dict.fromkeys(len(each.stages) for each in seen)) == [1, 2, 3]
    assert seen[-1].stages == found.stages
    assert len(found.table()) == 3
    assert len(found.figure().data) == 6
    assert found.names == [base.name]


def test_services_take_turns_and_refusals_are_counted(base: wb.Variant, tiny_task: wb.Task) -> None:
    def refuse(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(429, b'{"error": {"message": "full"}}', Retry_After="30")

    with says(refuse) as (url, _):
        endpoint = wb.connect(url, name="full <b>")
        found = wb.load_test([base, endpoint], tiny_task, concurrency=[2, 1], seconds=0.2, new_tokens=2)
    assert [each.name for each in found.stages] == [base.name, "full <b>", "full <b>", base.name]
    assert set(found.stages[1].errors) == {"refused"}
    assert not found.stages[0].errors
    assert "full &lt;b&gt;" in found.html()
    assert "outside this process" in found.notes[0]


def test_cancelled(base: wb.Variant, tiny_task: wb.Task) -> None:
    progress = wb.Progress()
    with pytest.raises(Cancelled):
        wb.load_test(
            base, tiny_task, concurrency=2, seconds=60, new_tokens=2, at={0.05: progress.cancel}, progress=progress
        )
    assert base.generate("Rain", max_new_tokens=1).spent == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rate": 1, "at": {99: print}},
        {"rate": 0},
        {"rate": [1, -1]},
        {"concurrency": 0},
        {"rate": 1, "seconds": 0},
        {"rate": 1, "new_tokens": 0},
    ],
)
def test_bad_settings(base: wb.Variant, tiny_task: wb.Task, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"needs|is done"):
        wb.load_test(base, tiny_task, **settings)
