"""Few models: what a page that is loaded again has to ask the kernel for."""

import ipywidgets as ipw
import pytest
from ipywidgets.widgets.widget import _instances as alive
from screen import TIMEOUT, everything

import workbench as wb
from widgets import Bench
from widgets.parts import ui
from widgets.parts.style import close_tree
from workbench.core.errors import InvalidInput
from workbench.steps import families, prompt, quantize


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def test_a_control_makes_one_model(bench: Bench) -> None:
    before = set(alive)
    for family in families():
        bench.panel(family)
    made = [each for name, each in alive.items() if name not in before]
    assert len(made) > 300
    # an index of variants that a Combobox offers is the first of its kind, and so is its style
    assert sum(isinstance(each, ipw.Layout | ipw.Style) for each in made) <= 3


def test_a_panel_is_built_when_it_is_first_looked_at(bench: Bench) -> None:
    assert [each.family for each in bench.panels] == ["prompt"]
    built = len(alive)
    bench.open("Prune")
    assert [each.family for each in bench.panels] == ["prompt", "prune"]
    assert len(alive) > built + 20
    built = len(alive)
    bench.open("Prompt")
    bench.open("Prune")
    assert len(alive) == built
    with pytest.raises(InvalidInput, match="no step family 'nothing'"):
        bench.panel("nothing")


def test_a_panel_that_comes_late_starts_where_the_others_do(bench: Bench) -> None:
    bench.turn_to(quantize.NF4())
    panel = bench.panel("quantize")
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert bench.panel("prune").target.value == bench.base.name
    panel.onward.click()
    assert bench.panel("prune").target.value == bench.panel("output").target.value == "NF4"
    bench.remove("NF4")
    assert bench.panel("context").target.value == bench.base.name


def test_what_an_unopened_panel_stood_at_stays_recorded(bench: Bench) -> None:
    stood = quantize.RTN(bits=3)
    bench.recall({"quantize": stood.to_json(), "prompt": prompt.System(text="Brief.").to_json()})
    assert bench.panel("prompt").step == prompt.System(text="Brief.")
    assert bench.record.knobs["quantize"] == stood.to_json()
    bench.open("Quantize")
    assert bench.panel("quantize").step == stood
    assert bench.recipe.steps == (stood,)


def test_what_is_shared_outlives_those_who_share_it() -> None:
    one, other = ui.Button(description="One"), ui.Button(description="Other")
    assert (one.layout, one.style) == (other.layout, other.style)
    ui.show(one, False)
    assert (one.layout.display, other.layout.display) == ("none", None)
    close_tree(ui.VBox([one]))
    assert other.layout.comm is not None
    ui.show(other, False)
    assert other.layout.comm is not None
    ipw.Widget.close_all()
    assert all(each.comm is not None for each in (ui.HTML().layout, ui.HTML().style))


def test_a_layout_of_a_readers_own_is_kept(bench: Bench) -> None:
    own = ipw.Layout(width="50%")
    button = ui.Button(layout=own)
    assert button.layout is own
    close_tree(button)
    assert own.comm is None
    assert {each.layout for each in everything(bench.widget) if isinstance(each, ipw.Button)} <= {
        ui.shared(ipw.Layout),
        ui.shared(ipw.Layout, display="none"),
    }
