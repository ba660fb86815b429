"""What all tools of the panels share: shown where they fit, closed with the bench, named, escaped, static."""

from pathlib import Path
from typing import Any

import ipywidgets as ipw
import pytest
from ipywidgets.widgets.widget import _instances as alive
from screen import TIMEOUT, everything, html, turn

import widgets
import workbench as wb
from widgets import Bench, Panel
from widgets.tools.blocks import Blocks
from widgets.tools.diff import Changes
from widgets.tools.preview import Live
from widgets.tools.question import Asked
from widgets.tools.sensitivity import Layers
from workbench.core.errors import InvalidInput
from workbench.layers.step import LayerStep
from workbench.step import RequestStep
from workbench.steps import families, prune, quantize

XSS = "<img src=x onerror=window.__xss=1>"


STEPS = [step for steps in families().values() for step in steps]


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.full_name())
def test_tools_are_shown_where_the_method_has_them(bench: Bench, step: type[wb.Step]) -> None:
    panel = bench.panel(step.family())
    panel.method.value = step
    shown = {kind for kind, tool in panel.tools.items() if tool.widget.layout.display != "none"}
    by_layer = issubclass(step, LayerStep) and bool(step.strength)
    on_requests = issubclass(step, RequestStep)
    on_weights = not on_requests and step.family() != "runtime"
    assert (Live in shown, Layers in shown) == (by_layer or (step.instant and on_weights), by_layer)
    assert (Blocks in shown) == hasattr(step, "ranking")
    assert (Changes in shown, Asked in shown) == (on_weights, on_requests)


def test_quantized_targets_are_refused_in_words(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    panel = bench.panel("quantize")
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


def test_nothing_from_outside_is_run(
    folders: dict[str, Path],
    tiny_text: wb.Text,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = wb.load(folders["llama"], device="cpu", dtype="float32", name=f"mine {XSS}")
    bench = Bench(base, wb.Text(name=XSS, text=tiny_text.text, window=32, calibration=4, test=4))
    panel = bench.panel("prune")
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
    for plot in (panel.tools[Changes].map.children[0], *panel.tools[Layers].plots.values()):
        assert "<img" not in plot.value.encode().decode("unicode_escape")
    bench.close()


def test_closing_takes_everything_away(base: wb.Variant, tiny_text: wb.Text) -> None:
    def build() -> int:
        bench = Bench(base, tiny_text)
        panel = bench.panel("prune")
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
    for family in families():
        for each in everything(bench.panel(family).widget):
            if hasattr(each, "description") and not hasattr(each, "children"):
                assert getattr(each, "description", "") or isinstance(each, ipw.HTML | ipw.FloatText)


def test_a_slider_of_a_browser_gives_the_number_it_shows(panel: Panel) -> None:
    panel.form.controls["sparsity"].value = 0.3
    panel.form.controls["sparsity"].slider.value = 0.49999999999999994
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
