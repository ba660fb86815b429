"""The live preview: it follows every knob, tries the newest settings only, and says why it has nothing."""

import threading
from typing import Any

import pytest
from screen import TIMEOUT, turn

import workbench as wb
from widgets import Bench, Panel
from widgets.tools import preview as live_module
from widgets.tools.preview import Live
from widgets.tools.sensitivity import Layers
from workbench.analysis.preview import preview
from workbench.core.progress import Progress
from workbench.steps import prune

XSS = "<img src=x onerror=window.__xss=1>"


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


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
    panel = bench.panel("prune")
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
