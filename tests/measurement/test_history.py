"""Runs of many notebooks in one place: found, filtered, compared or refused with the reason, drawn, exported."""

import csv
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.core.errors import Incomparable, InvalidInput, NotAvailable
from workbench.core.estimate import Estimate
from workbench.measurement.history import History, history
from workbench.measurement.runs import Run, RunStore, known_stores


def a_run(variant: str, day: int, torch: str = "2.13", task: str = "boats", speed: float = 20.0) -> Run:
    return Run(
        variant=variant, source="here", recipe=[{"step": "quantize.GPTQ", "bits": 4}], task=task, fingerprint=task,
        environment={"device": "a CPU", "torch": torch, "transformers": "5.23"}, settings={"rounds": 8},
        session=f"s{day}",
        measured_at=f"2026-11-{day:02}T12:00:00+00:00",
        estimates={"throughput": Estimate(value=speed, low=speed - 1, high=speed + 1, n=8, unit="tokens/s")},
    )  # fmt: skip


@pytest.fixture
def runs() -> History:
    made = [
        a_run("base", 1, "2.12", speed=18),
        a_run("base", 2),
        a_run("small", 3, speed=30),
        a_run("base", 4, task="tides"),
    ]
    return History(tuple(made))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "own" / "runs.jsonl"))


def test_runs_of_all_notebooks_are_found(tmp_path: Path) -> None:
    assert len(history()) == 0
    assert repr(history()) == "<History: no runs yet>"
    for number, folder in enumerate(("one", "two"), start=1):
        store = RunStore(tmp_path / folder / "runs.jsonl")
        store.append(a_run("base", number))
        store.append(a_run("small", number))
    found = history()
    assert len(found) == 4
    assert found.places == known_stores() == tuple(tmp_path / each / "runs.jsonl" for each in ("one", "two"))
    assert [run.measured_at[8:10] for run in found] == ["01", "01", "02", "02"]
    assert len(history(tmp_path / "one")) == len(history(tmp_path / "one" / "runs.jsonl")) == 2
    assert len(history(tmp_path)) == 4
    (tmp_path / "one" / "runs.jsonl").unlink()
    assert len(history()) == 2
    with pytest.raises(InvalidInput, match="nothing at"):
        history(tmp_path / "three")


def test_a_damaged_file_loses_its_damaged_lines_alone(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    for day in (1, 2, 3):
        store.append(a_run("base", day))
    lines = store.path.read_text().splitlines()
    store.path.write_text("\n".join([lines[0], lines[1][:50] + "\x00\xff", lines[2]]) + "\n")
    assert [run.measured_at[8:10] for run in history(store.path)] == ["01", "03"]


def test_filters(runs: History) -> None:
    assert len(runs.where(variant="small")) == 1
    assert len(runs.where(task="boats")) == 3
    assert len(runs.where(step="GPTQ", device="CPU")) == 4
    assert len(runs.where(step="AWQ")) == 0
    assert len(runs.where(since="2026-11-02", until="2026-11-03")) == 2
    assert "4 runs from 2026-11-01" in repr(runs)


def test_what_is_comparable_is_and_the_rest_is_refused(runs: History) -> None:
    found, refused = runs.comparable(2)
    assert [run.variant for run in found.runs] == ["small", "base"]
    assert found.runs[1].measured_at.startswith("2026-11-02")
    assert {why.split(":")[0][:40] for why in refused.values()} == {
        "'base' was measured with torch 2.12 and ", "'base' was measured on another task (tid"
    }  # fmt: skip
    assert [run.variant for run in runs.comparison(1, 2).runs] == ["base", "small"]
    twice = History((runs.runs[1], runs.runs[1].model_copy(update={"measured_at": "later"}))).comparison(0, 1)
    assert [run.variant for run in twice.runs] == ["base (2026-11-02T12:00:00+00:00)", "base (later)"]
    with pytest.raises(Incomparable, match=r"torch 2\.13"):
        runs.comparison(0, 2)
    with pytest.raises(InvalidInput, match="no run 9"):
        runs.comparison(9)


def test_drawn_and_tabled(runs: History, tmp_path: Path) -> None:
    over_time = runs.figure("throughput")
    assert len(over_time.data) == 3
    assert list(over_time.data[0].y) == [18, 20]
    versions = runs.figure("throughput", by="versions")
    assert list(versions.data[0].x) == ["torch 2.12, transformers 5.23", "torch 2.13, transformers 5.23"]
    for wrong in ({"metric": "beauty"}, {"by": "mood"}):
        with pytest.raises(InvalidInput, match="figure\\(\\) takes"):
            runs.figure(**wrong)
    table = runs.table()
    assert table["throughput"].tolist() == [18, 20, 30, 20]
    with runs.to_csv(tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["base", "base", "small", "base"]


def test_exports_that_are_not_there(runs: History, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotAvailable, match="Exporting to MLflow is done by mlflow"):
        runs.to_mlflow()
    with pytest.raises(NotAvailable, match="Exporting to Trackio is done by trackio"):
        runs.to_trackio()


def test_trackio_is_told(runs: History, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    module: Any = types.ModuleType("trackio")
    module.init = lambda **settings: said.append(settings)
    module.log = said.append
    module.finish = lambda: said.append("end")
    monkeypatch.setitem(sys.modules, "trackio", module)
    assert runs.to_trackio("mine") == 4
    assert said[:3] == [said[0], {"throughput": 18.0}, "end"]
    assert said[0]["project"] == "mine"
    assert said[0]["config"]["environment.torch"] == "2.12"


def test_a_comparison_is_in_the_history(base: wb.Variant, tiny_text: wb.Text) -> None:
    wb.compare([base], tiny_text, rounds=1, new_tokens=2)
    (run,) = wb.history()
    assert run.variant == "tiny" or run.variant == base.name
