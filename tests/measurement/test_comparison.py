"""Comparisons: estimates, verdicts, files, merging, figures and the run store."""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.answering.request import Request
from workbench.answering.stage import STAGES, Stage
from workbench.core.errors import Cancelled, Incomparable, InvalidInput
from workbench.core.estimate import Estimate
from workbench.measurement import scales
from workbench.measurement.runs import Run, RunStore
from workbench.measurement.verdict import verdict
from workbench.steps import finetune, prompt, quantize
from workbench.tasks.task import Example, Task, Text

ON_TASKS = {"cost", "score", "flips", "prompt_tokens", "answer_tokens"}  # metrics that need examples
HOSTILE = "<img src=x onerror=alert(1)>$x$"


@pytest.fixture
def text() -> Text:
    return Text(name="tide", text="Rain before noon, a red sky in the evening. " * 60, window=20, calibration=1, test=8)


@pytest.fixture
def compared(base: wb.Variant, text: Text) -> wb.Comparison:
    variants = [base, base.apply(quantize.Int8()), base.apply(prompt.System(text="Be brief."))]
    return wb.compare(variants, text, rounds=6, new_tokens=3, store=False)


def a_run(name: str, times: list[float], nll: list[float], **changes: object) -> Run:
    fields = {
        "variant": name,
        "source": "tiny",
        "recipe": [],
        "task": "t",
        "fingerprint": "f",
        "environment": {"device": "d", "torch": "2"},
        "settings": {"rounds": len(times), "new_tokens": 4, "examples": 0},
        "session": "s",
        "measured_at": "2026-01-01T00:00:00+00:00",
        "estimates": {"weight_bytes": Estimate.exact(100, "bytes")},
        "samples": {"inter_token_median": times, "nll": nll, "tokens": [10.0] * len(nll)},
    }
    return Run(**(fields | changes))


def test_metrics_of_every_run(compared: wb.Comparison) -> None:
    base, int8, told = compared.runs
    assert set(base.estimates) == set(scales.METRICS) - ON_TASKS - {"kl_to_baseline", "same_top_token"}
    assert {"kl_to_baseline", "same_top_token"} <= int8.estimates.keys()
    assert int8["weight_bytes"].value < base["weight_bytes"].value == told["weight_bytes"].value
    assert base["ttft"].n == 6
    assert base["inter_token_latency"].low <= base["inter_token_latency"].value <= base["inter_token_latency"].high
    assert wb.Recipe(int8.steps) == wb.Recipe([quantize.Int8()])
    with pytest.raises(InvalidInput, match="no 'score'"):
        base["score"]


def test_task_scores_and_flips(base: wb.Variant) -> None:
    said = base.generate("What is a lobster?", max_new_tokens=4).text.strip()
    test = tuple(Example(id=str(i), prompt="What is a lobster?", answer=said) for i in range(8))
    task = Task(name="repeat", max_new_tokens=4, test=test)
    result = wb.compare([base, base.apply(prompt.System(text="Say rain."))], task, rounds=6, new_tokens=3, store=False)
    before, after = result.runs
    assert before["score"].value == 1
    assert after["flips"].value == pytest.approx(1 - after["score"].value)
    if after["score"].value == 0:
        assert "score down 100.0 points (0 won, 8 lost, n=8)" in str(result.verdicts()[after.variant])


def test_table_figure_and_files(compared: wb.Comparison, tmp_path: Path) -> None:
    table = compared.table()
    assert list(table.index) == ["llama", "Int8", "System"]
    assert table.loc["Int8", "weight_bytes"] == compared["Int8"]["weight_bytes"].value
    assert table.loc["llama", "verdict"] == "baseline"
    figure = json.loads(compared.figure().to_json())
    assert [trace["type"] for trace in figure["data"]] == ["scatter"] * 3
    assert figure["data"][0]["x"] == [1e3 * run["inter_token_latency"].value for run in compared.runs]
    again = wb.Comparison.load(compared.save(tmp_path / "c.json"))
    assert again.runs == compared.runs
    with pytest.raises(InvalidInput, match="not a saved comparison"):
        wb.Comparison.from_json("[]")
    with pytest.raises(InvalidInput, match="Cannot read"):
        wb.Comparison.load(tmp_path / "missing.json")


def test_names_are_shown_as_text(base: wb.Variant, text: Text) -> None:
    run = wb.measure(base, text, rounds=1, new_tokens=2, store=False).model_copy(update={"variant": HOSTILE})
    result = wb.Comparison([run])
    assert HOSTILE not in result._repr_html_()
    assert "&lt;img" in result._repr_html_()
    labels = json.dumps(json.loads(result.figure().to_json())["data"])
    assert "<img" not in labels
    assert "$" not in labels


def test_a_variant_may_be_compared_with_itself(base: wb.Variant, text: Text) -> None:
    result = wb.compare([base, base], text, rounds=6, new_tokens=3, store=False)
    assert [run.variant for run in result.runs] == ["llama", "llama (2)"]
    said = result.verdicts()["llama (2)"]
    assert "same size" in said.words
    assert any(part.startswith("no measurable quality change") for part in said.words)


def test_updates_come_as_there_is_more_to_see(base: wb.Variant, text: Text) -> None:
    seen: list[int] = []
    wb.compare([base], text, rounds=3, new_tokens=2, store=False, on_update=lambda c: seen.append(len(c.metrics)))
    assert seen == sorted(seen)
    assert len(seen) == 5  # memory, likelihood, three rounds


def test_cancel_stores_nothing(base: wb.Variant, text: Text, tmp_path: Path) -> None:
    progress, store = wb.Progress(), RunStore(tmp_path / "runs.jsonl")
    with pytest.raises(Cancelled):
        wb.compare([base], text, progress=progress, store=store, on_update=lambda _: progress.cancel())
    assert len(store) == 0


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"new_tokens": 1}, {"examples": 0}])
def test_bad_settings(base: wb.Variant, text: Text, settings: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="at least"):
        wb.compare([base], text, store=False, **settings)
    with pytest.raises(InvalidInput, match="at least one variant"):
        wb.compare([], text, store=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"environment": {"device": "other", "torch": "2"}}, "measured with device other"),
        ({"environment": {"device": "d", "torch": "3"}}, "measured with torch 3"),
        ({"fingerprint": "g", "task": "u"}, "another task"),
        ({"settings": {"rounds": 9, "new_tokens": 4, "examples": 0}}, "other settings"),
    ],
)
def test_merge_refuses_with_the_reason(change: dict[str, object], reason: str) -> None:
    first = wb.Comparison([a_run("a", [1.0] * 8, [1.0] * 8)])
    with pytest.raises(Incomparable, match=reason):
        first.merge(wb.Comparison([a_run("b", [1.0] * 8, [1.0] * 8, **change)]))


def test_merge_keeps_both_and_pairs_within_a_session_only() -> None:
    rng = np.random.default_rng(0)
    drift = np.exp(rng.normal(0, 0.5, 12))  # a machine whose speed wanders: only pairs see through it
    before, after = list(drift), list(drift / 1.5)
    nll = list(rng.normal(10, 1, 12))
    same = verdict(a_run("a", before, nll), a_run("b", after, nll)).speed
    other = verdict(a_run("a", before, nll), a_run("b", after, nll, session="t")).speed
    assert same is not None
    assert other is not None
    assert same.value == pytest.approx(1.5)
    assert same.high - same.low < 1e-6 < other.high - other.low
    merged = wb.Comparison([a_run("a", before, nll)]).merge(wb.Comparison([a_run("b", after, nll, session="t")]))
    assert [run.variant for run in merged.runs] == ["a", "b"]


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1 / 1.3, "1.30x faster"), (2.0, "2.00x slower"), (1.0, "no measurable difference in speed")],
)
def test_speed_in_words(factor: float, words: str) -> None:
    rng = np.random.default_rng(1)
    before = rng.lognormal(0, 0.01, 20)
    after = before * factor * rng.lognormal(0, 0.001, 20)
    assert str(verdict(a_run("a", list(before), [1.0]), a_run("b", list(after), [1.0]))).startswith(words)


def test_quality_and_size_in_words() -> None:
    rng = np.random.default_rng(2)
    nll = rng.normal(30, 3, 20)
    worse = nll + 10 * np.log(1.10) + rng.normal(0, 0.05, 20)  # ten tokens a window: perplexity 10 % higher
    small = {"weight_bytes": Estimate.exact(25, "bytes")}
    said = str(verdict(a_run("a", [1.0] * 8, list(nll)), a_run("b", [1.0] * 8, list(worse), estimates=small)))
    assert "4.00x smaller" in said
    assert "perplexity 10." in said or "perplexity 9." in said
    assert "higher" in said
    slow = a_run("b", [2.0] * 8, list(nll), caveats=["not faster: because"], recipe=[{"step": "quantize.NF4"}])
    assert "not faster: because" in str(verdict(a_run("a", [1.0] * 8, list(nll)), slow))
    fast = slow.model_copy(update={"samples": slow.samples | {"inter_token_median": [0.5] * 8}})
    assert "because" not in str(verdict(a_run("a", [1.0] * 8, list(nll)), fast))
    assert "too few timings" in str(verdict(a_run("a", [1.0] * 3, list(nll)), a_run("b", [1.0] * 3, list(nll))))


def test_the_verdict_weighs_texts_as_the_table_does() -> None:
    """A long text got better and short ones worse: by tokens it gained, by texts it lost."""
    tokens, before = [100.0] + [1.0] * 9, [300.0] + [3.0] * 9
    after = [295.0] + [3.1] * 9
    old, new = (
        a_run(name, [1.0] * 8, nll, samples={"inter_token_median": [1.0] * 8, "nll": nll, "tokens": tokens})
        for name, nll in (("a", before), ("b", after))
    )
    change = verdict(old, new).quality
    assert change.value == pytest.approx((sum(after) - sum(before)) / sum(tokens)) == pytest.approx(-4.1 / 109)
    shown = [math.exp(sum(nll) / sum(tokens)) for nll in (before, after)]
    assert change.value == pytest.approx(math.log(shown[1] / shown[0])), "the table's perplexities, compared"


def test_notes_and_caveats_reach_every_form(base: wb.Variant, tiny_task: Task) -> None:
    seen = tuple(each.model_copy(update={"id": f"t{each.id}"}) for each in tiny_task.test)
    leaked = tiny_task.model_copy(update={"train": seen})
    tuned = base.apply(finetune.LoRA(epochs=1.0), leaked)
    result = wb.compare([tuned, tuned.apply(quantize.KVCache())], leaked, rounds=6, new_tokens=2, store=False)
    first, second = result.runs
    flatters = "8 of 8 test prompts are in the train split, too: the score will flatter."
    assert first.notes == second.notes == [flatters]
    assert second.caveats == [finetune.LoRA.caveat, quantize.KVCache.caveat]
    assert first.layers
    for shown in (result._repr_html_(), repr(result), str(result.table()["notes"].iloc[0]), result.figure().to_json()):
        assert "the score will flatter" in shown
    alone = wb.compare([base, tuned], leaked, rounds=2, new_tokens=2, store=False).verdicts()[tuned.name]
    assert alone.notes == (flatters,)
    assert "Note: 8 of 8" in str(alone)
    again = wb.Comparison.from_json(result.to_json())
    assert (again.runs[1].notes, again.runs[1].caveats) == (second.notes, second.caveats)


def test_every_example_is_rewritten_and_encoded_once(base: wb.Variant, tiny_task: Task) -> None:
    asked: list[str] = []

    class Counted(Stage):
        """Remembers what it was asked."""

        def rewrite(self, request: Request, variant: object) -> Request:
            asked.append(request.query)
            return request

    variant = dataclasses.replace(base, stages=(Counted(),))
    del STAGES[Counted.full_name()]
    wb.compare([variant], tiny_task, rounds=1, new_tokens=2, store=False)
    first, *others = (asked.count(each.prompt) for each in tiny_task.test)
    assert set(others) == {1}, "once for its likelihood and its score together"
    assert first == 1 + 3, "and for memory, to warm up, and for the one timed round"


def test_no_difference_at_least_95_times_in_100() -> None:
    """A variant against itself: noisy, spiky, drifting timings and resampled text, every part of the verdict."""
    quiet = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        drift = np.linspace(0, rng.normal(0, 0.1), 10)

        def times(rng: np.random.Generator = rng, drift: np.ndarray = drift) -> list[float]:
            spikes = np.where(rng.random(10) < 0.1, rng.exponential(1.0, 10), 0)
            return list(np.exp(drift + rng.normal(0, 0.03, 10) + spikes))

        nll = list(rng.normal(30, 3, 12))
        quiet += verdict(a_run("a", times(), nll), a_run("a (2)", times(), nll)).no_difference
    assert quiet >= 95


@pytest.mark.model
def test_the_real_model_against_itself(smollm: wb.Variant) -> None:
    """What does not depend on the clock; how often the clock fools the verdict is measured in benchmarks/same.py."""
    text = wb.read_text("data/prose", window=64, calibration=0, test=6)
    result = wb.compare([smollm, smollm], text, rounds=6, new_tokens=3, store=False)
    again = f"{smollm.name} (2)"
    assert result[again]["kl_to_baseline"].value == pytest.approx(0, abs=1e-6)
    assert result[again]["same_top_token"].value == 1
    assert result[again]["perplexity"] == result[smollm.name]["perplexity"]
    assert {"same size", "no measurable quality change, n=6"} <= set(result.verdicts()[again].words)


def test_store_round_trip_and_torn_lines(base: wb.Variant, text: Text, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "deep" / "runs.jsonl")
    run = wb.measure(base, text, rounds=1, new_tokens=2, store=store)
    assert list(store) == [run]
    with store.path.open("ab") as file:
        file.write(run.model_dump_json().encode()[:200])  # what a kill leaves
    assert list(RunStore(store.path)) == [run]
    store.append(run)
    assert list(store) == [run, run]


def _append_forever(path: str, started: "multiprocessing.synchronize.Event") -> None:
    run = a_run("a", [1.0] * 2000, [1.0] * 8)
    while True:
        RunStore(path).append(run)
        started.set()


def test_kill_while_writing_loses_at_most_one_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        started = context.Event()
        writer = context.Process(target=_append_forever, args=(str(path), started))
        writer.start()
        assert started.wait(30)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    store = RunStore(path)
    store.append(a_run("last", [1.0], [1.0]))
    lines = path.read_text().splitlines()
    whole = list(store)
    assert len(whole) >= len(lines) - 5
    assert whole[-1].variant == "last"


def test_two_writers_keep_every_line(tmp_path: Path) -> None:
    path = str(tmp_path / "runs.jsonl")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_some, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    names = [run.variant for run in RunStore(path)]
    assert sorted(names) == ["a"] * 30 + ["b"] * 30


def _append_some(path: str, name: str) -> None:
    for _ in range(30):
        RunStore(path).append(a_run(name, [1.0] * 500, [1.0]))


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(wb.WorkbenchError, match="could not be added"):
        RunStore(tmp_path / "file" / "runs.jsonl").append(a_run("a", [1.0], [1.0]))


def test_what_is_seen_before_the_end_says_that_it_is_partial(base: wb.Variant, tiny_task: Task) -> None:
    seen: list[wb.Comparison] = []
    bars: list[float] = []
    progress = wb.Progress(lambda shown: bars.append(shown.fraction))
    told = {"progress": progress, "on_update": seen.append}
    result = wb.compare([base], tiny_task, rounds=2, new_tokens=2, **told, store=False)
    assert [each.partial for each in seen[2:4]] == ["1 of 2 rounds", "2 of 2 rounds"]
    for words in (repr(seen[2]), seen[2]._repr_html_(), seen[2].figure().layout.title.text):
        assert "1 of 2 rounds" in words
        assert "not a result" in words
    assert result.partial == ""
    assert "artial" not in repr(result) + result._repr_html_()
    assert bars == sorted(bars)  # one bar over all phases
