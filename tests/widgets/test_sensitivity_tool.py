"""Sensitivity in a panel: a heat map whose cells exclude layers."""

import pytest
from screen import TIMEOUT, Gate, click

import workbench as wb
from widgets import Panel
from widgets.tools.sensitivity import Layers
from workbench.steps import prune


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def test_sensitivity_is_a_heat_map_whose_cells_exclude(panel: Panel, measured: Layers) -> None:
    typed = panel.form.controls["exclude"]
    plot = measured.plots[prune.Wanda]
    figure = plot.figure
    heats = [each for each in figure.data if each.type == "heatmap"]
    assert len(heats) == len(measured.result.strengths)
    assert panel.bench.sensitivity is measured.result
    assert len(measured.result.layers) == 14  # excluded ones are measured too
    assert "1 of 14 layers excluded: 1.mlp.down_proj" in measured.excluded.value
    row = next(at for at, names in enumerate(heats[0].customdata) if "0.mlp.up_proj" in names)
    column = list(heats[0].customdata[row]).index("0.mlp.up_proj")
    click(plot, 1, row, column)
    assert typed.value == "1.mlp.down_proj, 0.mlp.up_proj"
    for crosses in figure.data[len(heats) :]:
        assert sorted(zip(crosses.y, crosses.x, strict=True)) == [("0", "up_proj"), ("1", "down_proj")]
    click(plot, 1, row, column)
    assert typed.value == "1.mlp.down_proj"
    typed.value = "mlp"
    assert "6 of 14 layers" in measured.excluded.value
    click(plot, 1, row, column)
    assert typed.value == "mlp"
    assert "by a pattern" in measured.excluded.value
    typed.value = "nothing.here"
    assert "No layer is called" in measured.excluded.value


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
    first = layers.plots[prune.Magnitude]
    layers.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert layers.plots[prune.Magnitude] is first
    typed = panel.form.controls["exclude"]
    click(first, 0, 0, 0)
    assert typed.value == first.figure.data[0].customdata[0][0], "one click is told once"
