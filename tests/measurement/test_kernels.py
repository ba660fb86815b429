"""What a variant runs on, and how long a token is expected to take, before a step is applied."""

from typing import Any

import pytest

import workbench as wb
from widgets.parts import html
from workbench.steps import finetune, quantize


def test_every_layer_is_in_the_table(load_tiny: Any) -> None:
    variant = load_tiny("llama").apply(quantize.RTN())
    found = wb.kernels(variant)
    assert sum(each.count for each in found.layers) == 14 + 1, "seven of each block, and the head"
    formats = {each.format for each in found.layers}
    assert formats == {"Group (bits 4, group_size 64)", "Int8"}
    for each in found.layers:
        for tried in (each.one, each.many):
            assert tried.chosen in tried.seconds
            assert min(tried.seconds.values()) == tried.seconds[tried.chosen] > 0
    table = found.table()
    assert list(table["layers"]) == [each.count for each in found.layers]
    page = found._repr_html_()
    assert "<table>" in page
    assert found.layers[0].one.chosen in page


def test_dense_adapted_and_other_formats_have_a_row(load_tiny: Any, tiny_text: wb.Text) -> None:
    base = load_tiny("llama")
    assert {each.format for each in wb.kernels(base).layers} == {"float32"}
    assert {each.format for each in wb.kernels(load_tiny("gpt2")).layers} == {"float32"}
    assert any("Bits4" in each.format for each in wb.kernels(base.apply(quantize.NF4())).layers)
    adapted = base.apply(finetune.LoRA(epochs=1), tiny_text)
    assert sum(each.count for each in wb.kernels(adapted).layers) == 15


@pytest.mark.parametrize("step", [quantize.Int8(), quantize.RTN(bits=3), quantize.NF4(), quantize.GPTQ()])
def test_a_panel_says_how_long_a_token_will_take(step: wb.Step, load_tiny: Any) -> None:
    expected = step.forecast(load_tiny("llama"))
    assert expected.token_ratio is not None
    assert 0 < expected.token_ratio < 1000
    assert "times as long" in html.forecast(expected)


def test_what_is_no_gain_is_said_first() -> None:
    assert html.token_pace(1.34) == (
        "Not faster on this machine: a token is expected to take about 1.3 times as long as before."
    )
    assert html.token_pace(0.5) == "On this machine, a token is expected to take about 0.5 times as long as before."
