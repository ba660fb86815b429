"""Blocks ranked and weights compared, in a panel."""

import numpy as np
import pytest
from screen import TIMEOUT, click, turn

import workbench as wb
from widgets import Bench, Panel
from widgets.tools.blocks import Blocks
from widgets.tools.diff import Changes
from workbench.steps import prune


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


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
    bench.panel("prune").method.value = prune.DropBlocks
    blocks = bench.panel("prune").tools[Blocks]
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
    assert changes.variant.options == ("Magnitude", "Magnitude 0.6 sparse")
    assert changes.variant.value == "Magnitude 0.6 sparse"
    changes.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert "wb-done" in changes.message.value, changes.message.value
    assert changes.result.before == panel.bench.base.name
    assert changes.result.after == "Magnitude 0.6 sparse"
    assert [len(place.children) for place in (changes.map, changes.histogram, changes.closeup)] == [1, 1, 1]
    plot = changes.map.children[0]
    heat = plot.figure.data[0]
    click(plot, 0, 1, 2)
    assert panel.bench.wait(TIMEOUT)
    assert changes.layer.value == heat.customdata[1][2]
    assert changes.layer.value in changes.closeup.children[0].figure.layout.title.text
    shown = changes.map.children[0]
    changes.value.value = "zeros"
    assert panel.bench.wait(TIMEOUT)
    assert changes.map.children[0] is shown
    assert np.max(shown.figure.data[0].z) == pytest.approx(60, abs=1)


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
