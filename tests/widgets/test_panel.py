"""Panels without a browser: derived from every step's fields, refusing in the words of the code, shown as code."""

from typing import Any, Literal, get_args, get_origin

import annotated_types
import ipywidgets as ipw
import pytest
from pydantic import Field
from screen import TIMEOUT, Gate

import widgets
import workbench as wb
from widgets import Bench, Panel
from widgets.parts import html, ui
from widgets.parts.code import call, variable
from widgets.parts.fields import Form, control
from widgets.parts.number import Number
from workbench.core.errors import InvalidInput
from workbench.core.jobs import Job
from workbench.core.listed import Listed
from workbench.recipe import Recipe
from workbench.step import Step
from workbench.steps import families, prompt, quantize

XSS = "<img src=x onerror=window.__xss=1><script>window.__xss=1</script>"


STEPS = [step for steps in families().values() for step in steps]


every_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.full_name())


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def knob(kind: Any, **bounds: Any) -> ipw.Widget:
    made = type("Knob", (Step,), {"__annotations__": {"knob": kind}, "knob": Field(description="A knob.", **bounds)})
    return control("knob", made.model_fields["knob"])


@every_step
def test_a_panel_is_derived_from_every_steps_fields(bench: Bench, step: type[Step]) -> None:
    panel = bench.panel(step.family())
    panel.set(step())
    assert panel.step == step()
    assert list(panel.form.controls) == list(step.model_fields)
    for name, field in step.model_fields.items():
        each = panel.form.controls[name]
        assert each.value == field.default
        assert (each.box if isinstance(each, Number) else each).tooltip == field.description
        assert each.description
        if get_origin(field.annotation) is Literal:
            assert [value for _, value in each.options] == list(get_args(field.annotation))
        elif field.annotation is bool:
            assert isinstance(each, ipw.Checkbox)
        elif field.annotation is str:
            assert isinstance(each, ipw.Text | ipw.Textarea)
        else:
            assert isinstance(each, Number)
            for bound in field.metadata:
                if isinstance(bound, annotated_types.Ge):
                    assert each.low == bound.ge
                if isinstance(bound, annotated_types.Le):
                    assert each.high == bound.le
    assert step.paper in panel.explanation.value


@pytest.mark.parametrize(
    ("kind", "bounds", "expected"),
    [
        (bool, {"default": True}, ipw.Checkbox),
        (str, {"default": "a", "max_length": 50}, ipw.Text),
        (str, {"default": "a", "max_length": 5000}, ipw.Textarea),
        (Literal["a", "b"], {"default": "a"}, ipw.ToggleButtons),
        (Literal[tuple("abcdefgh")], {"default": "a"}, ipw.Dropdown),
    ],
)
def test_each_kind_of_knob_has_its_control(kind: Any, bounds: dict, expected: type) -> None:
    made = knob(kind, **bounds)
    assert isinstance(made, expected)
    assert made.value == bounds["default"]


@pytest.mark.parametrize(
    ("kind", "bounds", "slider"),
    [
        (int, {"default": 2, "ge": 1, "le": 9}, (ui.FloatSlider, 1, 9)),
        (int, {"default": 2, "gt": 1, "lt": 9}, (ui.FloatSlider, 2, 8)),
        (int, {"default": 2, "ge": 0, "le": 10**9}, None),
        (int, {"default": 2}, None),
        (float, {"default": 0.5, "ge": 0.0, "le": 1.0}, (ui.FloatSlider, 0.0, 1.0)),
        (float, {"default": 0.5, "gt": 0.0, "lt": 1.0}, (ui.FloatSlider, 0.005, 0.995)),
        (float, {"default": 0.001, "ge": 1e-6, "le": 1.0}, (ui.FloatLogSlider, -6, 0)),
        (float, {"default": 0.5}, None),
    ],
)
def test_a_number_has_a_slider_where_its_range_is_known(kind: Any, bounds: dict, slider: Any) -> None:
    made = knob(kind, **bounds)
    assert made.value == made.box.value == bounds["default"]
    assert type(made.value) is kind
    found = made.slider and (type(made.slider), pytest.approx(made.slider.min), pytest.approx(made.slider.max))
    assert found == slider


TYPED = [
    (float, {"default": 1.0, "ge": 0.0, "le": 100.0}, [0.25, 0.1, 33.337, 100.0, 0.0], 0.5),
    (float, {"default": 0.5, "gt": 0.0, "lt": 1.0}, [0.001, 0.4999, 0.9999], 0.005),
    (float, {"default": 5e-4, "gt": 0.0, "le": 1.0}, [0.25], 0.005),
    (int, {"default": 2, "ge": 0, "le": 1024}, [0, 7, 1024], 1),
]


@pytest.mark.parametrize(("kind", "bounds", "typed", "notch"), TYPED)
def test_a_number_stays_as_typed_and_the_slider_stands_nearby(
    kind: type, bounds: dict, typed: list[float], notch: float
) -> None:
    made = knob(kind, **bounds)
    for number in typed:
        made.box.value = number
        assert made.value == number
        assert type(made.value) is kind
        assert abs(made.slider.value - number) <= notch
        made.slider.value = made.slider.value + 1e-12  # a page says back where the slider stands, rounded
        assert made.value == made.box.value == number


def test_a_slider_that_is_moved_sets_the_number() -> None:
    made = knob(float, default=0.5, ge=0.0, le=1.0)
    made.slider.value = 0.6000000000000001
    assert made.value == made.box.value == 0.6
    rate = knob(float, default=1e-3, ge=1e-7, le=1.0)
    rate.slider.value = 10**-3.3
    assert rate.value == rate.box.value == 5e-4
    rate.value = 1.234e-4
    assert rate.box.value == 1.234e-4
    assert rate.slider.value == pytest.approx(10**-3.9)


def test_what_cannot_be_is_refused_and_not_changed_into_what_can(bench: Bench) -> None:
    panel = bench.panel("quantize")
    panel.set(quantize.RTN(bits=4))
    for typed, said in ((3.7, "valid integer"), (9.0, "less than or equal to 8"), (-1.0, "greater than or equal to 2")):
        panel.form.controls["bits"].box.value = typed
        assert said in panel.forecast.value
        assert said in panel.code.value
        assert panel.code.value.startswith("#")
        panel.button.click()
        assert "wb-error" in panel.message.value
        assert panel.form.controls["bits"].box.value == typed
    assert list(bench.variants) == [bench.base.name]
    bench.compare.rounds.box.value = 0.5
    bench.compare.button.click()
    assert "Rounds is a whole number from 1 to 50, not 0.5." in bench.compare.message.value
    bench.chat.prompt.value, bench.chat.temperature.box.value = "Hm?", 2.5
    bench.chat.send.click()
    assert "Temperature is a number from 0 to 2, not 2.5." in bench.chat.message.value


def test_a_panel_refuses_in_the_words_of_the_code(bench: Bench) -> None:
    panel = bench.panel("prompt")
    panel.form.controls["text"].value = "x" * 20_001
    with pytest.raises(InvalidInput) as refused:
        prompt.System(text="x" * 20_001)
    panel.button.click()
    assert str(refused.value)[:60].replace("'", "&#x27;") in panel.message.value
    assert "wb-error" in panel.message.value
    assert list(bench.variants) == [bench.base.name]


def test_apply_makes_the_variant_that_the_code_makes(bench: Bench) -> None:
    panel = bench.panel("quantize")
    panel.set(quantize.Int8(head=False))
    assert panel.code.value == "int8 = base.apply(quantize.Int8(head=False))"
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert "wb-done" in panel.message.value
    scope = {"base": bench.base, "quantize": quantize}
    exec(panel.code.value, scope)
    assert bench.variants["Int8"].recipe == scope["int8"].recipe
    assert bench.chosen == (bench.base.name, "Int8")


def test_what_a_note_lists_opens_below_the_message() -> None:
    job = Job("Auto", lambda progress: "Auto")
    job.run()
    page = html.job_message(job, "Made 'Auto'.", ("Other.", Listed("All of it.", f"Kept {XSS}.", ("Way",), ((XSS,),))))
    assert "Made &#x27;Auto&#x27;. Other.</div><details><summary>Kept &lt;img" in page
    assert " All 1 in a table</summary>" in page
    assert "<td>&lt;img" in page
    assert "<img" not in page


def test_code_of_a_second_step_starts_from_the_base(bench: Bench) -> None:
    bench.add(bench.base.apply(prompt.System(text="Be brief.")))
    panel = bench.panel("quantize")
    panel.target.value = "System"
    panel.set(quantize.NF4(block_size=32))
    wanted = "nf4 = base.apply(prompt.System(text='Be brief.')).apply(quantize.NF4(block_size=32))"
    assert panel.code.value == wanted
    assert panel.recipe == Recipe([prompt.System(text="Be brief."), quantize.NF4(block_size=32)])


def test_code_of_a_stranger_starts_from_the_list(bench: Bench, load_tiny: Any) -> None:
    """Another model, another copy of the same one, or one made from before the base: none is `base.apply(...)`."""
    others = {"gpt2": load_tiny("gpt2"), "again": load_tiny("llama").apply(prompt.System(text="Hm."))}
    panel = bench.panel("quantize")
    panel.set(quantize.Int8())
    for name, variant in others.items():
        bench.add(variant.renamed(name))
        panel.target.value = name
        assert panel.code.value == f"int8 = bench.variants['{name}'].apply(quantize.Int8())"
    brief = bench.base.apply(prompt.System(text="Be brief."))
    assert call(brief, bench.base, quantize.Int8()).startswith("int8 = bench.variants['llama'].")
    assert call(brief, brief.apply(quantize.NF4()), quantize.KVCache()) == (
        "kvcache = base.apply(quantize.NF4()).apply(quantize.KVCache())"
    )


def test_labels_as_variables() -> None:
    names = {"Int8": "int8", "Lambda": "lambda_", "2x": "v2x", "prompt": "prompt_", "A-b": "a_b", "!": "variant"}
    assert {name: variable(name) for name in names} == names


def test_recipe_is_what_the_open_panel_is_set_to(bench: Bench) -> None:
    bench.open("Quantize")
    bench.panel("quantize").set(quantize.LLMInt8(threshold=4.0))
    assert repr(bench.recipe) == "Recipe([quantize.LLMInt8(threshold=4.0)])"
    bench.open("Chat")  # the chat has no recipe of its own
    assert bench.recipe == Recipe([quantize.LLMInt8(threshold=4.0)])


def test_forecast_arrives_without_being_waited_for(bench: Bench) -> None:
    panel = bench.panel("quantize")
    gate = Gate(bench)
    panel.set(quantize.NF4(block_size=128))
    assert "when the worker is free" in panel.forecast.value
    gate.opened.set()
    assert bench.wait(TIMEOUT)
    assert "new memory" in panel.forecast.value
    assert bench.jobs == ()


def test_a_step_that_does_not_fit_says_why(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    panel = bench.panel("quantize")
    panel.target.value = "Int8"
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert "already quantized" in panel.message.value
    assert "wb-error" in panel.message.value
    assert "already quantized" in panel.forecast.value


def test_a_bug_in_a_step_is_shown_folded_and_escaped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError(XSS)

    monkeypatch.setattr(quantize.NF4, "apply", fail)
    panel = bench.panel("quantize")
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert "<details>" in panel.message.value
    assert "KeyError" in panel.message.value
    assert "<img" not in panel.message.value


def test_a_panel_shows_alone_on_the_same_bench(bench: Bench) -> None:
    panel = widgets.QuantizePanel(bench)
    assert isinstance(panel, Panel)
    data = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in (data[0] if isinstance(data, tuple) else data)
    panel.set(quantize.Int8())
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert "Int8" in bench.variants
    assert set(dir(widgets)) >= {"PromptPanel", "QuantizePanel"}
    with pytest.raises(AttributeError):
        _ = widgets.NothingPanel
    with pytest.raises(InvalidInput, match="no step family"):
        Panel(bench, "nothing")


def test_forms_hold_every_value_a_step_can_have() -> None:
    form = Form(quantize.LLMInt8)
    form.set(quantize.LLMInt8(threshold=12.5))
    assert form.step() == quantize.LLMInt8(threshold=12.5)
    form.controls["threshold"].value = 500
    with pytest.raises(InvalidInput, match="less than or equal to 100"):
        form.step()
