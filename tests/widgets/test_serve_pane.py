"""The serving pane without a browser: start, watch, load, kill, list, stop."""

from typing import Any

import pytest

import workbench as wb
from widgets.panes.serve import replicas_html

pytestmark = pytest.mark.xdist_group("ray")


def waited(bench: Any) -> str:
    assert bench.wait(240)
    return str(bench.serve.message.value)


def test_a_service_from_start_to_end(bench: Any, cluster: None) -> None:
    pane = bench.serve
    assert "No service runs" in pane.where.value
    for click in (pane.end, pane.measure):
        click()
        assert "start one first" in pane.message.value
    pane.port.value = 70_000
    pane.run()
    assert "from 0 to 65535" in pane.message.value
    pane.port.value = 0
    pane.run()
    assert "is served at http://127.0.0.1:" in waited(bench)
    assert pane.start.disabled
    assert not pane.stop.disabled
    assert pane.service.url in pane.where.value
    pane.run()
    assert "stop it first" in pane.message.value
    pane._kill()
    assert "No replica has answered yet" in pane.message.value
    pane.seconds.value, pane.level.value = 1, 20
    pane.measure()
    assert "requests/s" in waited(bench)
    assert isinstance(pane.load, wb.LoadTest)
    assert pane.load.stages[0].answered
    assert "Asked from" in pane.report.value
    assert len(pane.place.children) == len(pane.times.children) == 1
    pane.simulate()
    assert "Policies were simulated" in waited(bench)
    assert "least loaded" in pane.costs.value
    pane._add()
    waited(bench)
    (name,) = set(bench.respondents) - set(bench.variants)
    assert "answers elsewhere" in bench.listing.rows[name]["facts"]
    assert bench.listing.rows[name]["here"] is False
    bench.chat.prompt.value = "What is a lobster?"
    bench.chat.length.value = 4
    bench.chat.ask()
    assert bench.wait(60)
    first, second = bench.chat.turns[-1].answers.values()
    assert (second.state, second.text) == ("done", first.text)
    assert name not in bench.panel("quantize").target.options
    bench.compare.show_changes()
    assert "weights are elsewhere" in bench.compare.message.value
    bench.rename(name, "far")
    bench.remove("far")
    pane.end()
    assert "has ended" in waited(bench)
    assert pane.stop.disabled
    assert pane.service is None


def test_code_says_what_the_buttons_do(bench: Any) -> None:
    pane = bench.serve
    pane.policy.value, pane.replicas.value = "prefix aware", 3
    pane.kind.value, pane.level.value = "concurrency", 4.4
    assert pane.code.value == (
        "service = wb.serve(base, replicas=3, policy='prefix aware', port=0)\n"
        "wb.load_test(service, task, concurrency=4, seconds=10)"
    )
    pane.replicas.value = 0
    assert pane.code.value.startswith("# Replicas is a whole number")


def test_replicas_are_escaped() -> None:
    times = {"p50": 0.01, "p95": 0.02, "p99": 0.03}
    seat = {
        "lost": True,
        "in_flight": 1,
        "done": 2,
        "failed": 0,
        "tokens_per_second": 3.0,
        "ttft": times,
        "latency": {},
    }
    said = replicas_html({"waiting": 5, "replicas": {"<b>": seat}})
    assert "&lt;b&gt; (ended)" in said
    assert "10 / 20 / 30" in said
    assert "No replica has answered" in replicas_html({"waiting": 0, "replicas": {}})
