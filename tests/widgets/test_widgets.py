"""The bench without a browser: panels from fields, jobs, names, escaping, and nothing left behind."""

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import ipywidgets as ipw
import pytest
from ipywidgets.widgets.widget import _instances as alive
from pydantic import Field
from screen import TIMEOUT, Gate, everything, html

import widgets
import workbench as wb
from widgets import Bench, Panel
from widgets.parts.code import call, variable
from widgets.parts.fields import Form, control
from workbench.core.errors import InvalidInput
from workbench.core.jobs import QUEUE_LIMIT
from workbench.core.progress import Progress
from workbench.recipe import Recipe
from workbench.step import Step
from workbench.steps import families, prompt, quantize

XSS = "<img src=x onerror=window.__xss=1><script>window.__xss=1</script>"
STEPS = [step for steps in families().values() for step in steps]
every_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.full_name())


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


@every_step
def test_a_panel_is_derived_from_every_steps_fields(bench: Bench, step: type[Step]) -> None:
    panel = bench.family_panels[step.family()]
    panel.set(step())
    assert panel.step == step()
    assert list(panel.form.controls) == list(step.model_fields)
    for name, field in step.model_fields.items():
        each = panel.form.controls[name]
        assert each.value == field.default
        assert each.tooltip == field.description
        assert each.description
        if get_origin(field.annotation) is Literal:
            assert [value for _, value in each.options] == list(get_args(field.annotation))
        elif field.annotation is bool:
            assert isinstance(each, ipw.Checkbox)
        elif field.annotation is str:
            assert isinstance(each, ipw.Text | ipw.Textarea)
        else:
            power = 10 if isinstance(each, ipw.FloatLogSlider) else None
            for bound in field.metadata:
                if isinstance(bound, annotated_types.Ge):
                    assert (power**each.min if power else each.min) == pytest.approx(bound.ge)
                if isinstance(bound, annotated_types.Le):
                    assert (power**each.max if power else each.max) == pytest.approx(bound.le)
    assert step.paper in panel.explanation.value


def knob(kind: Any, **bounds: Any) -> ipw.Widget:
    made = type("Knob", (Step,), {"__annotations__": {"knob": kind}, "knob": Field(description="A knob.", **bounds)})
    return control("knob", made.model_fields["knob"])


@pytest.mark.parametrize(
    ("kind", "bounds", "expected", "low", "high"),
    [
        (int, {"default": 2, "ge": 1, "le": 9}, ipw.IntSlider, 1, 9),
        (int, {"default": 2, "gt": 1, "lt": 9}, ipw.IntSlider, 2, 8),
        (int, {"default": 2, "ge": 0, "le": 10**9}, ipw.BoundedIntText, 0, 10**9),
        (int, {"default": 2}, ipw.IntText, None, None),
        (float, {"default": 0.5, "ge": 0.0, "le": 1.0}, ipw.FloatSlider, 0.0, 1.0),
        (float, {"default": 0.5, "gt": 0.0, "lt": 1.0}, ipw.FloatSlider, 0.005, 0.995),
        (float, {"default": 0.001, "ge": 1e-6, "le": 1.0}, ipw.FloatLogSlider, -6, 0),
        (float, {"default": 0.5}, ipw.FloatText, None, None),
        (bool, {"default": True}, ipw.Checkbox, None, None),
        (str, {"default": "a", "max_length": 50}, ipw.Text, None, None),
        (str, {"default": "a", "max_length": 5000}, ipw.Textarea, None, None),
        (Literal["a", "b"], {"default": "a"}, ipw.ToggleButtons, None, None),
        (Literal[tuple("abcdefgh")], {"default": "a"}, ipw.Dropdown, None, None),
    ],
)
def test_each_kind_of_knob_has_its_control(kind: Any, bounds: dict, expected: type, low: Any, high: Any) -> None:
    made = knob(kind, **bounds)
    assert type(made) is expected
    assert made.value == pytest.approx(bounds["default"])
    if low is not None:
        assert made.min == pytest.approx(low)
        assert made.max == pytest.approx(high)


def test_a_panel_refuses_in_the_words_of_the_code(bench: Bench) -> None:
    panel = bench.family_panels["prompt"]
    panel.form.controls["text"].value = "x" * 20_001
    with pytest.raises(InvalidInput) as refused:
        prompt.System(text="x" * 20_001)
    panel.button.click()
    assert str(refused.value)[:60].replace("'", "&#x27;") in panel.message.value
    assert "wb-error" in panel.message.value
    assert list(bench.variants) == [bench.base.name]


def test_apply_makes_the_variant_that_the_code_makes(bench: Bench) -> None:
    panel = bench.family_panels["quantize"]
    panel.set(quantize.Int8(head=False))
    assert panel.code.code == "int8 = base.apply(quantize.Int8(head=False))"
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert "wb-done" in panel.message.value
    scope = {"base": bench.base, "quantize": quantize}
    exec(panel.code.code, scope)
    assert bench.variants["Int8"].recipe == scope["int8"].recipe
    assert bench.chosen == (bench.base.name, "Int8")


def test_code_of_a_second_step_starts_from_the_base(bench: Bench) -> None:
    bench.add(bench.base.apply(prompt.System(text="Be brief.")))
    panel = bench.family_panels["quantize"]
    panel.target.value = "System"
    panel.set(quantize.NF4(block_size=32))
    wanted = "nf4 = base.apply(prompt.System(text='Be brief.')).apply(quantize.NF4(block_size=32))"
    assert panel.code.code == wanted
    assert panel.recipe == Recipe([prompt.System(text="Be brief."), quantize.NF4(block_size=32)])


def test_code_of_a_stranger_starts_from_the_list(bench: Bench, load_tiny: Any) -> None:
    """Another model, another copy of the same one, or one made from before the base: none is `base.apply(...)`."""
    others = {"gpt2": load_tiny("gpt2"), "again": load_tiny("llama").apply(prompt.System(text="Hm."))}
    panel = bench.family_panels["quantize"]
    panel.set(quantize.Int8())
    for name, variant in others.items():
        bench.add(variant.renamed(name))
        panel.target.value = name
        assert panel.code.code == f"int8 = bench.variants['{name}'].apply(quantize.Int8())"
    brief = bench.base.apply(prompt.System(text="Be brief."))
    assert call(brief, bench.base, quantize.Int8()).startswith("int8 = bench.variants['llama'].")
    assert call(brief, brief.apply(quantize.NF4()), quantize.KVCache()) == (
        "kvcache = base.apply(quantize.NF4()).apply(quantize.KVCache())"
    )


def test_labels_as_variables() -> None:
    names = {"Int8": "int8", "Lambda": "lambda_", "2x": "v2x", "prompt": "prompt_", "A-b": "a_b", "!": "variant"}
    assert {name: variable(name) for name in names} == names


def test_recipe_is_what_the_open_panel_is_set_to(bench: Bench) -> None:
    bench.tabs.selected_index = list(families()).index("quantize")
    bench.family_panels["quantize"].set(quantize.LLMInt8(threshold=4.0))
    assert repr(bench.recipe) == "Recipe([quantize.LLMInt8(threshold=4.0)])"
    bench.tabs.selected_index = len(families())  # the chat has no recipe of its own
    assert bench.recipe == Recipe([quantize.LLMInt8(threshold=4.0)])


def test_forecast_arrives_without_being_waited_for(bench: Bench) -> None:
    panel = bench.family_panels["quantize"]
    gate = Gate(bench)
    panel.set(quantize.NF4(block_size=128))
    assert "when the worker is free" in panel.forecast.value
    gate.opened.set()
    assert bench.wait(TIMEOUT)
    assert "new memory" in panel.forecast.value
    assert bench.jobs == ()


def test_a_step_that_does_not_fit_says_why(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    panel = bench.family_panels["quantize"]
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
    panel = bench.family_panels["quantize"]
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert "<details>" in panel.message.value
    assert "KeyError" in panel.message.value
    assert "<img" not in panel.message.value


def test_the_same_click_again_is_refused_and_another_is_queued(bench: Bench) -> None:
    gate = Gate(bench)
    panel = bench.family_panels["quantize"]
    panel.button.click()
    panel.button.click()
    assert "under way already" in panel.message.value
    panel.set(quantize.Int8())
    panel.button.click()
    assert "2 queued" in bench.status.value
    gate.opened.set()
    assert bench.wait(TIMEOUT)
    assert list(bench.variants) == [bench.base.name, "NF4", "Int8"]
    assert "Ready" in bench.status.value
    assert bench.stop.disabled


def test_a_full_queue_is_said(bench: Bench) -> None:
    gate = Gate(bench)
    for number in range(QUEUE_LIMIT - 1):
        bench.submit(f"Job {number}", lambda progress: None)
    panel = bench.family_panels["quantize"]
    panel.button.click()
    assert "jobs are waiting" in panel.message.value
    gate.opened.set()
    assert bench.wait(TIMEOUT)


def test_twenty_clicks_and_the_api_at_once(bench: Bench) -> None:
    panel = bench.family_panels["prompt"]
    troubles: list[Exception] = []

    def api(whose: str) -> None:
        try:
            for number in range(10):
                name = bench.add(bench.base.apply(prompt.System(text=f"Say {number}.")))
                bench.rename(name, f"{whose} {number}")
                list(bench.variants.values())
                bench.remove(f"{whose} {number}")
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=api, args=(whose,)) for whose in ("Ann", "Ben")]
    for thread in threads:
        thread.start()
    for number in range(20):
        panel.form.controls["text"].value = f"Answer {number}."
        panel.button.click()
    for thread in threads:
        thread.join(TIMEOUT)
    assert bench.wait(TIMEOUT)
    assert troubles == []
    made = {step.text for variant in bench.variants.values() for step in variant.recipe}
    refused = "waiting" in panel.message.value
    assert refused or made == {f"Answer {number}." for number in range(20)}
    assert set(bench.listing.rows) == set(bench.variants)
    assert len(bench.listing._place.children) == len(bench.variants)


def test_cancel_in_the_middle_of_a_step_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Event()

    def slow(step: Step, variant: wb.Variant, task: Any, progress: Progress) -> None:
        progress.start("Slow", 1000)
        while True:
            reached.set()
            progress.advance()
            reached.wait(0.01)

    monkeypatch.setattr(quantize.NF4, "apply", slow)
    panel = bench.family_panels["quantize"]
    panel.button.click()
    assert reached.wait(TIMEOUT)
    assert not bench.stop.disabled
    bench.stop.click()
    assert bench.wait(TIMEOUT)
    assert "cancelled, nothing was changed" in panel.message.value
    assert list(bench.variants) == [bench.base.name]


def test_names_are_kept_apart_and_the_base_stays(bench: Bench) -> None:
    step = prompt.System(text="Hello.")
    assert [bench.add(bench.base.apply(step)) for _ in range(3)] == ["System", "System 2", "System 3"]
    assert [each.name for each in bench.variants.values()][1:] == ["System", "System 2", "System 3"]
    kept = bench.variants["System"]
    assert bench.add(kept) == "System"
    with pytest.raises(InvalidInput, match="already a variant"):
        bench.rename("System", "System 2")
    bench.rename("System 2", "Brief")
    assert list(bench.variants)[1:] == ["System", "Brief", "System 3"]
    assert "Brief" in bench.chosen
    with pytest.raises(InvalidInput, match="baseline"):
        bench.remove(bench.base.name)
    with pytest.raises(InvalidInput, match="no variant"):
        bench.remove("nothing")
    assert bench.variants["Brief"].parent == bench.base
    bench.rename(bench.base.name, "Original")
    assert bench.variants["Brief"].parent is bench.base
    assert (bench.base.owned_bytes, bench.variants["Brief"].owned_bytes) == (bench.base.total_bytes, 0)
    assert bench.add(kept) == "System"
    assert bench.add(bench.base.renamed("Elsewhere")) == "Original", "the same variant, whatever it is called"
    assert next(iter(bench.variants)) == bench.base.name == "Original"
    assert bench.family_panels["quantize"].target.options[0] == "Original"


def test_removing_gives_the_memory_back(bench: Bench) -> None:
    panel = bench.family_panels["quantize"]
    panel.set(quantize.Int8())
    panel.button.click()
    assert bench.wait(TIMEOUT)
    panel.target.value = "Int8"
    made = weakref.ref(bench.variants["Int8"])
    bench.listing.rows["Int8"].remove.click()
    assert bench.wait(TIMEOUT)
    gc.collect()
    assert made() is None
    assert panel.target.value == bench.base.name


def test_rows_rename_and_tick(bench: Bench) -> None:
    bench.add(bench.base.apply(prompt.System()))
    row = bench.listing.rows["System"]
    row.tick.value = False
    assert bench.chosen == (bench.base.name,)
    row.typed.value = "../x"
    row.rename.click()
    assert "cannot be used as a name" in bench.listing.message.value
    row.typed.value = "Brief"
    row.rename.click()
    assert "Brief" in bench.variants
    assert bench.listing.rows["Brief"].tick.value is False


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a\0b", "x" * 300, "", ".hidden", XSS])
def test_export_names_are_refused(bench: Bench, name: str) -> None:
    row = bench.listing.rows[bench.base.name]
    row.typed.value = name
    row.save.click()
    assert bench.wait(TIMEOUT)
    assert "cannot be used as a name" in bench.listing.message.value
    assert "<img" not in bench.listing.message.value
    assert list(Path.cwd().iterdir()) == []


def test_export_does_not_follow_a_link(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "exports").symlink_to(tmp_path / "elsewhere")
    row = bench.listing.rows[bench.base.name]
    row.typed.value = "mine"
    row.save.click()
    assert bench.wait(TIMEOUT)
    assert "symbolic link" in bench.listing.message.value
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_export_is_written_and_loads(bench: Bench) -> None:
    row = bench.listing.rows[bench.base.name]
    row.typed.value = "mine"
    row.save.click()
    assert bench.wait(TIMEOUT)
    assert "Saved to exports/mine" in bench.listing.message.value
    again = wb.load("exports/mine")
    asked = {"prompt": "What is a lobster?", "max_new_tokens": 6}
    assert again.generate(**asked).token_ids == bench.base.generate(**asked).token_ids


def test_chat_answers_in_turn_as_generate_does(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    bench.chat.prompt.value = "What is a lobster?"
    bench.chat.length.value = 6
    bench.chat.send.click()
    assert bench.wait(TIMEOUT)
    answers = bench.chat.turns[-1].answers
    assert list(answers) == [bench.base.name, "Int8"]
    for name, answer in answers.items():
        wanted = bench.variants[name].generate("What is a lobster?", max_new_tokens=6)
        assert answer.text == wanted.text
        assert answer.tokens == len(wanted.token_ids)
        assert answer.state == "done"
    assert bench.chat.live.value.count("tokens/s") == 2
    assert bench.chat.stop.disabled


def test_chat_says_what_is_missing(bench: Bench) -> None:
    bench.chat.send.click()
    assert "The prompt is empty" in bench.chat.message.value
    bench.chat.prompt.value = "Hello"
    bench.choose(bench.base.name, False)
    bench.chat.send.click()
    assert "No variant is chosen" in bench.chat.message.value
    bench.choose(bench.base.name)
    bench.chat.prompt.value = "lobster " * 600
    bench.chat.send.click()
    assert bench.wait(TIMEOUT)
    assert "shorten the prompt" in bench.chat.message.value


def test_chat_stops_and_keeps_what_was_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()

    def endless(variant: wb.Variant, *_: Any, **__: Any) -> Iterator[wb.Piece]:
        while True:
            yield wb.Piece("word ", 1, 0.0)
            said.set()
            said.wait(0.01)

    monkeypatch.setattr(wb.Variant, "stream", endless)
    bench.chat.prompt.value = "Hello"
    bench.chat.send.click()
    assert said.wait(TIMEOUT)
    bench.chat.stop.click()
    assert bench.wait(TIMEOUT)
    assert bench.chat.turns[-1].answers[bench.base.name].state == "stopped"
    assert "word" in bench.chat.live.value
    assert "kept" in bench.chat.message.value


def test_compare_draws_and_keeps_the_result(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    pane = bench.compare
    pane.rounds.value, pane.tokens.value, pane.examples.value = 2, 2, 2
    pane.visible = True
    pane.show_estimate()
    assert bench.wait(TIMEOUT)
    assert "judging by" in pane.estimate.value
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert "Measured" in pane.message.value, pane.message.value
    assert [run.variant for run in bench.comparison.runs] == [bench.base.name, "Int8"]
    assert "Int8" in pane.report.value
    assert list(pane.figure.data[0].marker.color) == [bench.colour(bench.base.name), bench.colour("Int8")]
    first = pane.figure
    bench.choose("Int8", False)
    pane.button.click()
    assert bench.wait(TIMEOUT)
    assert pane.figure is first
    assert len(first.data[0].y) == 1
    assert len(wb.RunStore("runs/runs.jsonl")) == 3


def test_compare_without_a_task_says_so(base: wb.Variant) -> None:
    bench = Bench(base)
    bench.compare.button.click()
    assert "no task" in bench.compare.message.value
    bench.close()


def test_what_changed_is_drawn(bench: Bench) -> None:
    bench.compare.diff.click()
    assert "Tick two" in bench.compare.message.value
    bench.add(bench.base.apply(quantize.Int8()))
    bench.compare.diff.click()
    assert bench.wait(TIMEOUT)
    assert bench.compare.changes.data[0].type == "heatmap"


def test_text_from_outside_is_escaped_everywhere(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = {"prompt": XSS, "answer": XSS}
    task = wb.Task(name=XSS, scorer="f1", max_new_tokens=2, test=[{"id": str(i)} | example for i in range(2)])
    bench = Bench(wb.load(folders["llama"], device="cpu", dtype="float32", name=XSS), task)
    try:
        assert bench.add(bench.base.apply(prompt.System(text=XSS)).renamed("mine")) == "mine"
        monkeypatch.setattr(wb.Variant, "stream", lambda *_, **__: iter([wb.Piece(XSS, 1, 0.1)]))
        bench.chat.prompt.value = XSS
        bench.chat.send.click()
        pane = bench.compare
        pane.rounds.value, pane.tokens.value = 1, 2
        pane.button.click()
        pane.diff.click()
        bench.listing.rows["mine"].typed.value = XSS
        bench.listing.rows["mine"].rename.click()
        assert bench.wait(TIMEOUT)
        assert bench.comparison
        shown = html(bench)
        assert "&lt;img" in shown
        for bad in ("<img", "<script"):
            assert bad not in shown
            assert bad not in pane.figure.to_json().encode().decode("unicode_escape")
        for each in everything(bench.widget):
            assert not getattr(each, "description_allow_html", False)
    finally:
        bench.close()


def test_rebuilding_leaks_nothing(base: wb.Variant, tiny_text: wb.Text, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def build() -> tuple[int, int]:
        bench = Bench(base, tiny_text)
        bench._repr_mimebundle_()
        widgets.QuantizePanel(bench)._repr_mimebundle_()
        bench.add(base.apply(quantize.Int8()))
        bench.compare.diff.click()
        assert bench.wait(TIMEOUT)
        workers = [each for each in threading.enumerate() if each.name == "workbench-worker" and each.is_alive()]
        for worker in workers[:-1]:
            worker.join(TIMEOUT)
        return len(alive), threading.active_count()

    counts = [build() for _ in range(5)]
    assert len(set(counts[1:])) == 1, counts
    last = Bench(base)
    before = len(alive)
    last.close()
    last.close()
    assert len(alive) < before
    assert not [each for each in alive.values() if isinstance(each, ipw.Button)]


def test_a_closed_bench_says_so(base: wb.Variant) -> None:
    bench = Bench(base)
    assert bench.wait(TIMEOUT)
    Bench(base).close()
    assert bench.closed
    with pytest.raises(InvalidInput, match="was closed"):
        bench.submit("Job", lambda progress: None)
    with pytest.raises(InvalidInput, match="was closed"):
        bench.add(base.apply(prompt.System()))


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


@pytest.mark.parametrize("wrong", [None, 1, "model"])
def test_only_variants_are_taken(bench: Bench, wrong: Any) -> None:
    with pytest.raises(InvalidInput):
        Bench(wrong)
    with pytest.raises(InvalidInput):
        bench.add(wrong)


def test_forms_hold_every_value_a_step_can_have() -> None:
    form = Form(quantize.LLMInt8)
    form.set(quantize.LLMInt8(threshold=12.5))
    assert form.step() == quantize.LLMInt8(threshold=12.5)
    form.controls["threshold"].value = 500  # a slider stays inside, as the code refuses
    assert form.step().threshold == 100.0
