"""What helps to find a step's settings, without a browser: live preview, sensitivity, ranking, what changed."""

import threading
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import numpy as np
import pytest
from ipywidgets.widgets.widget import _instances as alive
from screen import TIMEOUT, Gate, everything, html

import widgets
import workbench as wb
from widgets import Bench, Panel
from widgets.tools import preview as live_module
from widgets.tools.blocks import Blocks
from widgets.tools.diff import Changes
from widgets.tools.preview import Live
from widgets.tools.question import Asked
from widgets.tools.sensitivity import Layers
from workbench.analysis.preview import preview
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.step import LayerStep
from workbench.step import RequestStep
from workbench.steps import families, prune, quantize

XSS = "<img src=x onerror=window.__xss=1>"
STEPS = [step for steps in families().values() for step in steps]


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


@pytest.fixture
def panel(bench: Bench) -> Panel:
    return bench.family_panels["prune"]


def turn(panel: Panel, step: LayerStep) -> None:
    """Set the panel and wait until everything has followed."""
    panel.set(step)
    assert panel.bench.wait(TIMEOUT)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.full_name())
def test_tools_are_shown_where_the_method_has_them(bench: Bench, step: type[wb.Step]) -> None:
    panel = bench.family_panels[step.family()]
    panel.method.value = step
    shown = {kind for kind, tool in panel.tools.items() if tool.widget.layout.display != "none"}
    by_layer = issubclass(step, LayerStep) and bool(step.strength)
    on_requests = issubclass(step, RequestStep)
    assert (Live in shown, Layers in shown) == (by_layer or (step.instant and not on_requests), by_layer)
    assert (Blocks in shown) == hasattr(step, "ranking")
    assert (Changes in shown, Asked in shown) == (not on_requests, on_requests)


def test_live_follows_every_knob(panel: Panel) -> None:
    live = panel.tools[Live]
    turn(panel, prune.Wanda(sparsity=0.3))
    assert live.result is None
    live.switch.value = True
    assert panel.bench.wait(TIMEOUT)
    first = live.result
    assert first
    turn(panel, prune.Wanda(sparsity=0.7))
    assert live.result.zeros > first.zeros
    assert live.result.kl > first.kl
    assert "nats a token" in live.view.value
    assert "prune.Wanda(sparsity=0.7)" in live.view.value
    turn(panel, prune.Wanda(sparsity=0.7, exclude="0"))
    assert live.result.kl < preview(panel.bench.base, prune.Wanda(sparsity=0.7), panel.bench.task).kl
    live.prompt.value = "Name a rope."
    assert panel.bench.wait(TIMEOUT)
    assert live.result.base_text == panel.bench.base.generate("Name a rope.", max_new_tokens=16).text
    assert list(panel.bench.variants) == [panel.bench.base.name]
    live.switch.value = False
    known = live.result
    turn(panel, prune.Wanda(sparsity=0.1))
    assert live.result is known


def test_only_the_newest_settings_are_tried(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    stopped: list[float] = []
    entered = threading.Event()

    def slow(variant: wb.Variant, step: Any, task: Any, prompt: str, progress: Progress) -> Any:
        tried.append(step.sparsity)
        entered.set()
        try:
            while step.sparsity < 0.9:
                entered.wait(0.01)
                progress.check()
        except wb.WorkbenchError:
            stopped.append(step.sparsity)
            raise
        return preview(variant, step, task, prompt, progress)

    monkeypatch.setattr(live_module, "preview", slow)
    turn(panel, prune.Magnitude(sparsity=0.1))
    panel.tools[Live].switch.value = True
    assert entered.wait(TIMEOUT)
    for hundredths in range(11, 91):
        panel.form.controls["sparsity"].value = hundredths / 100
    assert panel.bench.wait(TIMEOUT)
    assert tried[0] == 0.1
    assert tried[-1] == 0.9
    assert stopped == tried[:-1]
    assert len(tried) < 40
    assert "sparsity=0.9" in panel.tools[Live].view.value


def test_switching_live_off_stops_it(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = threading.Event()

    def endless(*args: Any) -> None:
        entered.set()
        while True:
            entered.wait(0.01)
            args[-1].check()

    monkeypatch.setattr(live_module, "preview", endless)
    live = panel.tools[Live]
    live.switch.value = True
    assert entered.wait(TIMEOUT)
    live.switch.value = False
    assert panel.bench.wait(TIMEOUT)
    assert live.result is None


def test_live_says_why_it_has_nothing(base: wb.Variant, panel: Panel) -> None:
    live = panel.tools[Live]
    live.switch.value = True
    live.prompt.value = "lobster " * 600
    assert panel.bench.wait(TIMEOUT)
    assert "shorten the prompt" in live.view.value
    live.prompt.value = "Hello"
    panel.form.controls["sparsity"].value = 0.4
    panel.form.controls["pattern"].value = "2:4"
    assert "cannot be tried" in live.status.value
    assert "set sparsity to 0.5" in panel.forecast.value
    bench = Bench(base)
    panel = bench.family_panels["prune"]
    panel.tools[Live].switch.value = True
    assert bench.wait(TIMEOUT)
    assert "no divergence" in panel.tools[Live].view.value
    turn(panel, prune.Wanda())
    assert "needs a task" in panel.tools[Live].status.value
    panel.tools[Layers].button.click()
    assert "no task" in panel.tools[Layers].message.value
    bench.close()


def test_a_broken_preview_does_not_break_the_panel(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise KeyError(XSS)

    monkeypatch.setattr(live_module, "preview", broken)
    panel.tools[Live].switch.value = True
    assert panel.bench.wait(TIMEOUT)
    assert "KeyError" in panel.tools[Live].view.value
    panel.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert "Magnitude" in panel.bench.variants


@pytest.fixture
def measured(panel: Panel) -> Layers:
    turn(panel, prune.Wanda(exclude="1.mlp.down_proj"))
    layers = panel.tools[Layers]
    layers.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert "wb-done" in layers.message.value, layers.message.value
    return layers


def test_sensitivity_is_a_heat_map_whose_cells_exclude(panel: Panel, measured: Layers) -> None:
    typed = panel.form.controls["exclude"]
    figure = measured.figures[prune.Wanda]
    heats = [each for each in figure.data if each.type == "heatmap"]
    assert len(heats) == len(measured.result.strengths)
    assert panel.bench.sensitivity is measured.result
    assert len(measured.result.layers) == 14  # excluded ones are measured too
    assert "1 of 14 layers excluded: 1.mlp.down_proj" in measured.excluded.value
    row = next(at for at, names in enumerate(heats[0].customdata) if "0.mlp.up_proj" in names)
    column = list(heats[0].customdata[row]).index("0.mlp.up_proj")
    click(heats[1], row, column)
    assert typed.value == "1.mlp.down_proj, 0.mlp.up_proj"
    for crosses in figure.data[len(heats) :]:
        assert sorted(zip(crosses.y, crosses.x, strict=True)) == [("0", "up_proj"), ("1", "down_proj")]
    click(heats[1], row, column)
    assert typed.value == "1.mlp.down_proj"
    typed.value = "mlp"
    assert "6 of 14 layers" in measured.excluded.value
    click(heats[1], row, column)
    assert typed.value == "mlp"
    assert "by a pattern" in measured.excluded.value
    typed.value = "nothing.here"
    assert "No layer is called" in measured.excluded.value


def click(heat: Any, row: int, column: int) -> None:
    """As Plotly tells a FigureWidget of it."""
    from plotly.callbacks import Points

    for callback in heat._click_callbacks:
        callback(heat, Points(point_inds=[(row, column)]), None)


def test_the_most_sensitive_are_excluded_and_stay_dense(panel: Panel, measured: Layers) -> None:
    found = measured.result
    worst = sorted(range(len(found.layers)), key=lambda row: -found.kl[row, 1])[:2]
    panel.form.controls["exclude"].value = ""
    measured.count.value = 2
    measured.leave_out.click()
    assert panel.form.controls["exclude"].value.split(", ") == [found.layers[row] for row in worst]
    panel.button.click()
    assert panel.bench.wait(TIMEOUT)
    for path in found.layers:
        base, made = (each.model.get_submodule(f"model.layers.{path}") for each in panel.bench.variants.values())
        assert (made.weight is base.weight) == (path in panel.step.exclude)


def test_each_method_keeps_its_own_map(panel: Panel, measured: Layers) -> None:
    found = measured.result
    panel.method.value = prune.Magnitude
    assert measured.result is None
    assert measured.found.layout.display == "none"
    measured.leave_out.click()
    assert panel.form.controls["exclude"].value == ""
    panel.method.value = prune.Wanda
    assert measured.result is found
    assert [place.layout.display for place in measured.place.children] == [None]


def test_a_queued_measurement_can_be_cancelled_and_repeated(panel: Panel) -> None:
    layers, gate = panel.tools[Layers], Gate(panel.bench)
    layers.button.click()
    layers.button.click()
    assert "under way already" in layers.message.value
    panel.bench.jobs[1].cancel()
    gate.opened.set()
    assert panel.bench.wait(TIMEOUT)
    assert "cancelled" in layers.message.value
    assert layers.result is None
    layers.button.click()
    assert panel.bench.wait(TIMEOUT)
    first = layers.figures[prune.Magnitude]
    layers.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert layers.figures[prune.Magnitude] is first
    assert len(first.data[0]._click_callbacks) == 1


def test_quantized_targets_are_refused_in_words(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    panel = bench.family_panels["quantize"]
    turn(panel, quantize.RTN(bits=3))
    panel.tools[Live].switch.value = True
    panel.target.value = "Int8"
    panel.tools[Layers].button.click()
    assert bench.wait(TIMEOUT)
    assert "already quantized" in panel.tools[Live].view.value
    assert "already quantized" in panel.tools[Layers].message.value
    panel.target.value = bench.base.name
    assert bench.wait(TIMEOUT)
    assert "bits a weight" in panel.tools[Live].view.value


def test_blocks_are_ranked_and_follow_the_knob(panel: Panel) -> None:
    panel.method.value = prune.DropBlocks
    blocks = panel.tools[Blocks]
    blocks.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert list(blocks.ranking.dropped).count(True) == 1
    assert len(blocks.place.children) == 1
    assert "<table" in blocks.table.value
    turn(panel, prune.DropBlocks(share=0.0))
    assert not any(blocks.ranking.dropped)
    bench = Bench(panel.bench.base)
    bench.family_panels["prune"].method.value = prune.DropBlocks
    blocks = bench.family_panels["prune"].tools[Blocks]
    blocks.button.click()
    assert bench.wait(TIMEOUT)
    assert "pass a task" in blocks.message.value
    bench.close()


def test_what_changed_shows_the_last_variant_of_the_family(panel: Panel) -> None:
    changes = panel.tools[Changes]
    changes.button.click()
    assert "Apply makes one" in changes.message.value
    for sparsity in (0.3, 0.6):
        turn(panel, prune.Magnitude(sparsity=sparsity))
        panel.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert changes.variant.options == ("Magnitude", "Magnitude 2")
    assert changes.variant.value == "Magnitude 2"
    changes.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert "wb-done" in changes.message.value, changes.message.value
    assert changes.result.before == panel.bench.base.name
    assert changes.result.after == "Magnitude 2"
    assert [len(place.children) for place in (changes.map, changes.histogram, changes.closeup)] == [1, 1, 1]
    heat = changes.map.children[0].data[0]
    click(heat, 1, 2)
    assert panel.bench.wait(TIMEOUT)
    assert changes.layer.value == heat.customdata[1][2]
    assert changes.layer.value in changes.closeup.children[0].layout.title.text
    shown = changes.map.children[0]
    changes.value.value = "zeros"
    assert panel.bench.wait(TIMEOUT)
    assert changes.map.children[0] is shown
    assert np.max(shown.data[0].z) == pytest.approx(60, abs=1)


def test_what_changed_of_a_removed_variant_says_so(panel: Panel) -> None:
    panel.button.click()
    assert panel.bench.wait(TIMEOUT)
    changes = panel.tools[Changes]
    changes.button.click()
    assert panel.bench.wait(TIMEOUT)
    panel.bench.remove("Magnitude")
    assert changes.variant.value is None
    changes.layer.value = changes.layer.options[-1]
    assert panel.bench.wait(TIMEOUT)
    assert "no longer in memory" in changes.message.value
    changes.button.click()
    assert "Apply makes one" in changes.message.value


def test_nothing_from_outside_is_run(
    folders: dict[str, Path],
    tiny_text: wb.Text,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = wb.load(folders["llama"], device="cpu", dtype="float32", name=f"mine {XSS}")
    bench = Bench(base, wb.Text(name=XSS, text=tiny_text.text, window=32, calibration=4, test=4))
    panel = bench.family_panels["prune"]
    panel.tools[Live].switch.value = True
    panel.tools[Live].prompt.value = XSS
    panel.button.click()
    assert bench.wait(TIMEOUT)
    for button in (panel.tools[Changes].button, panel.tools[Layers].button):
        button.click()
    assert bench.wait(TIMEOUT)
    panel.form.controls["exclude"].value = XSS
    assert bench.wait(TIMEOUT)
    assert "No layer is called" in panel.forecast.value
    assert "<img" not in html(bench)
    for figure in (panel.tools[Changes].map.children[0], *panel.tools[Layers].figures.values()):
        assert "<img" not in figure.to_json().encode().decode("unicode_escape")
    bench.close()


def test_closing_takes_everything_away(base: wb.Variant, tiny_text: wb.Text) -> None:
    def build() -> int:
        bench = Bench(base, tiny_text)
        panel = bench.family_panels["prune"]
        panel.tools[Live].switch.value = True
        for kind in (prune.Magnitude, prune.Wanda):
            panel.method.value = kind
            panel.tools[Layers].button.click()
            panel.button.click()
            assert bench.wait(TIMEOUT)
            panel.tools[Changes].button.click()
        panel.method.value = prune.DropBlocks
        panel.tools[Blocks].button.click()
        assert bench.wait(TIMEOUT)
        bench.close()
        return len(alive)

    assert build() == build() == build()


def test_every_control_has_a_name(bench: Bench) -> None:
    for panel in bench.family_panels.values():
        for each in everything(panel.widget):
            if hasattr(each, "description") and not hasattr(each, "children"):
                assert getattr(each, "description", "") or isinstance(each, ipw.HTML)


def test_a_slider_of_a_browser_gives_the_number_it_shows(panel: Panel) -> None:
    panel.form.controls["sparsity"].value = 0.49999999999999994
    panel.form.controls["pattern"].value = "2:4"
    assert panel.step == prune.Magnitude(pattern="2:4")


def test_what_was_found_has_a_static_form(panel: Panel, measured: Layers) -> None:
    panel.tools[Live].switch.value = True
    panel.button.click()
    assert panel.bench.wait(TIMEOUT)
    panel.tools[Changes].button.click()
    assert panel.bench.wait(TIMEOUT)
    shown = html(panel.bench)
    for said in ("nats a token", "Most sensitive at", "Most changed"):
        assert shown.count(said) >= 2


def test_panels_are_found_by_name(bench: Bench) -> None:
    assert {"PrunePanel", "QuantizePanel"} <= set(dir(widgets))
    for name in ("PrunePanel", "QuantizePanel"):
        made = getattr(widgets, name)(bench)
        assert isinstance(made, Panel)
        assert {Live, Layers, Changes} <= made.tools.keys()
    assert Blocks in widgets.PrunePanel(bench).tools
    with pytest.raises(InvalidInput, match="no step family"):
        Panel(None, "nothing")
