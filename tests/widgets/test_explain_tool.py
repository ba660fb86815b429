"""The tool that says why a variant is slow: its buttons set panels, its devices can be edited."""

from pathlib import Path

import pytest
from screen import TIMEOUT, html

import workbench as wb
from widgets import Bench
from widgets.tools import explain as tool
from widgets.tools.explain import Explain
from workbench.analysis.explain import explain
from workbench.runtime import probe


@pytest.fixture
def explained(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explain:
    """The tool of the runtime panel, after a click; the device is tried on little."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "_found", {})
    monkeypatch.setattr(probe, "LARGEST", 1 << 22)
    monkeypatch.setattr(probe, "SIZES", (64,))
    monkeypatch.setattr(
        tool, "explain", lambda variant, progress: explain(variant, 1, 2, context=16, rounds=1, progress=progress)
    )
    found = bench.panel("runtime").tools[Explain]
    found.button.click()
    assert bench.wait(TIMEOUT)
    assert "wb-done" in found.message.value, found.message.value
    return found


def test_the_sentence_and_everything_behind_it_are_on_screen(bench: Bench, explained: Explain) -> None:
    assert explained.result is not None
    assert explained.result.sentence.split(":")[0] in explained.static
    assert explained.result.sentence[:20] in html(bench)
    assert "from data sheets" in explained.table.value
    assert "e+0" not in explained.table.value  # numbers in full
    assert len(explained.place.children) == 1


def test_a_suggestion_sets_the_panel_of_its_family(bench: Bench, explained: Explain) -> None:
    for button, suggestion in zip(
        explained.choices, [each for each in explained.result.suggestions if each.step], strict=True
    ):
        button.click()
        panel = bench.panel(suggestion.step.family())
        assert panel.step == suggestion.step
        assert bench.recipe == bench.base.recipe.then(suggestion.step)


def test_an_edited_device_counts_at_once(explained: Explain) -> None:
    before = explained.result.elsewhere().loc["TPU v5e", "first"]
    row = explained.rows["TPU v5e"]
    for name in ("bandwidth", "flops"):
        row[name].value = 1e-3
    after = explained.result.elsewhere().loc["TPU v5e"]
    assert after["first"] < before / 1000
    assert "edited" in after["source"]
    assert "edited" in explained.table.value
    row["bandwidth"].value = -1
    assert "wb-error" in explained.message.value
    assert explained.result.elsewhere().loc["TPU v5e", "first"] == after["first"]
    row["bandwidth"].value = 819
    explained.button.click()
    assert explained.bench.wait(TIMEOUT)
    assert "edited" in explained.table.value  # what was typed stays


def test_what_memory_holds(bench: Bench, base: wb.Variant) -> None:
    found = bench.panel("runtime").tools[Explain]
    found.memory_button.click()
    assert bench.wait(TIMEOUT)
    assert "this process holds" in found.held.value
    assert base.name in found.static
