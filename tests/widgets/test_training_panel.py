"""A training in its panel, without a browser: curves, pause, an early end, cancel."""

import threading

from screen import TIMEOUT, html

import widgets
import workbench as wb
from widgets import Bench
from widgets.tools.training import Training
from workbench.steps import finetune, prompt

LONG = finetune.LoRA(epochs=100.0, batch_size=4, learning_rate=1e-3)


def started(bench: Bench, step: finetune.LoRA) -> tuple[Training, threading.Event]:
    """The tool of a panel whose training has begun to show itself."""
    panel = bench.panel("finetune")
    tool, seen = panel.tools[Training], threading.Event()
    tool.place.observe(lambda _: seen.set(), "children")
    panel.set(step)
    assert panel.step == step
    panel.button.click()
    assert seen.wait(TIMEOUT)
    return tool, seen


def test_a_finished_training_stands_on_screen(bench: Bench) -> None:
    tool, _ = started(bench, finetune.LoRA(epochs=2.0, batch_size=4))
    assert bench.wait(TIMEOUT)
    assert "LoRA" in bench.variants
    assert "4 of 4 steps" in tool.status.value
    assert "ended" in tool.status.value
    assert tool.pause.disabled
    figure = tool.place.children[0].figure
    assert list(figure.data[0].x) == [1, 2, 3, 4]
    assert list(figure.data[1].x) == [0, 1, 2, 3, 4]
    assert "star" in figure.data[1].marker.symbol
    assert tool.answers.value.count("wb-said") == 2
    assert "validation loss" in html(bench)


def test_pause_holds_and_finish_keeps_what_was_learned(bench: Bench) -> None:
    tool, _ = started(bench, LONG)
    tool.pause.click()
    assert tool.pause.description == "Resume"
    assert not bench.wait(0.5)
    assert bench.base.generate("Rain", max_new_tokens=2).text is not None, "the bench can be talked to meanwhile"
    tool.pause.click()
    tool.finish.click()
    assert bench.wait(TIMEOUT)
    made = bench.variants["LoRA"]
    assert 0 < len(wb.curve(made).points) < wb.curve(made).total


def test_cancel_keeps_nothing(bench: Bench) -> None:
    tool, _ = started(bench, LONG)
    tool.cancel.click()
    assert bench.wait(TIMEOUT)
    assert list(bench.variants) == [bench.base.name]
    assert "cancelled, so that nothing was kept." in tool.status.value


def test_the_panel_has_its_name() -> None:
    assert callable(widgets.FineTunePanel)


def test_a_comparison_and_a_training_of_one_variant_take_turns(bench: Bench) -> None:
    before = bench.base.generate("How many seats?", max_new_tokens=4).token_ids
    panel = bench.panel("finetune")
    panel.set(finetune.LoRA(epochs=2.0, batch_size=4))
    bench.submit("comparing", lambda progress: wb.compare([bench.base], bench.task, rounds=2, store=False))
    panel.button.click()
    assert "queued" in panel.message.value
    assert bench.wait(TIMEOUT)
    assert "LoRA" in bench.variants
    assert bench.base.generate("How many seats?", max_new_tokens=4).token_ids == before


def test_a_teacher_is_suggested(bench: Bench) -> None:
    panel = bench.panel("distil")
    assert panel.form.controls["teacher"].options == (bench.base.name,)
    bench.add(bench.base.apply(prompt.System(text="Hm.")).renamed("tutor"))
    assert "tutor" in panel.form.controls["teacher"].options


def test_what_a_training_noted_is_said(bench: Bench) -> None:
    leaked = tuple(each.model_copy(update={"id": f"again {each.id}"}) for each in bench.task.test)
    bench.task = bench.task.model_copy(update={"train": leaked})
    panel = bench.panel("finetune")
    panel.set(finetune.LoRA(epochs=1.0, batch_size=4))
    panel.button.click()
    assert bench.wait(TIMEOUT)
    assert "the score will flatter" in panel.message.value


def test_knobs_of_the_method_stand_first_and_rare_ones_are_folded(bench: Bench) -> None:
    form = bench.panel("finetune").form
    shown, more = form.widget.children
    names = [row.children[0].description for row in shown.children]
    assert names[:3] == ["Rank", "Alpha", "Dropout"]
    assert {"Learning rate", "Epochs"} <= set(names)
    assert "Batch size" in [row.children[0].description for row in more.children[0].children]
