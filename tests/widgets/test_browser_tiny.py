"""The bench in a real browser, on a model of a few weights: all that needs no sensible answer."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from page import (
    CLICK_TO_CHANGE,
    SECONDS,
    SHOTS,
    TABS,
    Page,
    bench_cell,
    choose,
    command,
    errors,
    idle,
    note,
    opened,
    playwright_api,
    reload,
    row,
    run_all,
    show,
    tab,
)

XSS = "<img src=x onerror=window.__xss=1><script>window.__xss=1</script>"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_hostile_text_is_shown_and_not_run(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    setup = f"""
import workbench as wb
from widgets import Bench
from workbench.steps import prompt
xss = {XSS!r}
rows = [{{"id": str(i), "prompt": xss, "answer": xss}} for i in range(4)]
task = wb.Task(name=xss, scorer="f1", max_new_tokens=4, test=rows)
base = wb.load({str(folders["llama"])!r}, device="cpu", dtype="float32", name="base " + xss)
wb.Variant.decode = lambda *_: xss
bench = Bench(base, task)
bench.add(base.apply(prompt.System(text=xss)))
"""
    diff = "wb.diff(base, bench.variants['System']).before"
    page = opened(window, site[1], "hostile", site[0], setup, "bench", diff)
    panel = tab(page, "Chat")
    panel.get_by_label("Prompt").fill(XSS)
    panel.get_by_role("button", name="Send").click()
    page.wait_for_function("document.querySelectorAll('.wb-said').length === 2")
    idle(page)
    assert XSS in panel.locator(".wb-said").first.inner_text()
    panel = tab(page, "Compare")
    panel.get_by_role("button", name="Compare").click()
    panel.locator(".wb-done", has_text="Measured").wait_for()
    panel.locator(".js-plotly-plot .scatterlayer").first.wait_for()
    hostile = row(page, "System")
    hostile.locator(".wb-icon").click()
    for button in ("Rename", "Save"):
        hostile.get_by_label("New name").fill(XSS)
        hostile.get_by_role("button", name=f"{button} System").click()
        page.locator(".wb-list .wb-error", has_text="cannot be used as a name").wait_for()
    panel = tab(page, "Prompt")
    panel.get_by_label("Text").fill(XSS)
    panel.get_by_role("button", name="Apply").click()
    row(page, "System 2").wait_for()
    idle(page)
    for each in TABS:
        tab(page, each)
    assert page.locator(".wb-bench img, .wb-bench script").count() == 0
    assert page.evaluate("window.__xss") is None
    page.close()


def test_running_the_cell_again_replaces_the_bench(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    load = f"import workbench as wb\nfrom widgets import Bench\nbase = wb.load({str(folders['llama'])!r})"
    page = opened(window, site[1], "again", site[0], load, "Bench(base)", "Bench(base)")
    page.wait_for_function("document.querySelectorAll('.wb-card').length === 1")
    tab(page, "Prompt").get_by_role("button", name="Apply").click()
    row(page, "System").wait_for()
    page.close()


CELL = """(plot, layer) => {
  for (const trace of plot.data.filter((each) => each.type === "heatmap")) {
    const row = trace.customdata.findIndex((names) => names.includes(layer));
    if (row < 0) continue;
    const column = trace.customdata[row].indexOf(layer), axes = plot._fullLayout, place = plot.getBoundingClientRect();
    const x = axes.xaxis.c2p(axes.xaxis.d2c(trace.x[column])) + axes.xaxis._offset + place.x;
    const y = axes.yaxis.c2p(axes.yaxis.d2c(trace.y[row])) + axes.yaxis._offset + place.y;
    return { x, y, z: plot.calcdata[plot.data.indexOf(trace)][0].z[row][column] };
  }
}"""  # where a cell of the first heat map is on the page, and its number


@pytest.fixture(scope="module")
def tuned(site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]) -> Iterator[Page]:
    """A bench on a tiny model, opened at pruning with Wanda."""
    page = opened(window, site[1], "tune", site[0], bench_cell(folders["llama"]), "bench")
    tab(page, "Prune").get_by_role("button", name="Wanda").click()
    yield page
    assert errors(page) == []
    page.close()


# A page too busy to load a widget's code within the two seconds that anywidget allows.
LATE = """
const timeout = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = (milliseconds) => timeout(milliseconds === 2000 ? 0 : milliseconds);
"""
TRACES = "(plots) => plots.map((plot) => plot.data.map((each) => [each.type, (each.z ?? each.x).length]))"


def test_a_late_page_draws_figures_and_code(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    load = bench_cell(
        folders["llama"]
    )  # a panel alone: what a whole bench takes to come back is ipywidgets' own affair
    alone = "from widgets import PrunePanel\nfrom widgets.session import Session\nPrunePanel(Session(base, bench.task))"
    page = opened(window, site[1], "late", site[0], f"{load}\nbench.close()", alone, before=LATE)
    panel = page.locator(".wb-panel")
    panel.get_by_role("button", name="Wanda").click()
    panel.get_by_role("button", name="Measure sensitivity").click()
    panel.locator(".wb-done", has_text="Measured").wait_for()
    panel.locator(".wb-code", has_text="prune.Wanda()").wait_for()
    panel.locator(".js-plotly-plot .heatmaplayer").first.wait_for()
    panel.get_by_label("Exclude", exact=True).fill("up_proj")
    panel.get_by_label("Exclude", exact=True).press("Tab")
    panel.get_by_text("2 of 14 layers excluded").wait_for()
    panel.locator(".js-plotly-plot .scatterlayer .point").nth(5).wait_for()
    panel.locator(".wb-code", has_text="exclude='up_proj'").wait_for()
    shown = panel.locator(".js-plotly-plot").evaluate_all(TRACES)
    assert shown == [[["heatmap", 2]] * 3 + [["scatter", 2]] * 3]

    command(page, "docmanager:save")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    reload(page)
    panel.locator(".js-plotly-plot .scatterlayer .point").nth(5).wait_for()
    assert panel.locator(".js-plotly-plot").evaluate_all(TRACES) == shown
    panel.get_by_role("button", name="Apply").click()
    panel.locator(".wb-done", has_text="Made 'Wanda'").wait_for()
    panel.get_by_role("button", name="What changed").click()
    panel.locator(".wb-done", has_text="against").wait_for()
    panel.locator(".js-plotly-plot").nth(3).wait_for()
    for each in range(4):
        panel.locator(".js-plotly-plot").nth(each).locator(".heatmaplayer, .scatterlayer .trace").first.wait_for()
    page.set_viewport_size({"width": 1280, "height": 3200})
    page.locator(".wb-bench").screenshot(path=SHOTS / "reloaded.png")
    assert errors(page) == []
    page.close()


def test_a_typed_number_is_taken_as_typed(tuned: Page) -> None:
    panel = tab(tuned, "Fine-tune")
    epochs = panel.get_by_label("Epochs", exact=True).last
    for typed in ("0.25", "0.1"):
        epochs.fill(typed)
        epochs.press("Enter")
        panel.locator(".wb-code", has_text=f"epochs={typed})").wait_for()
        assert epochs.input_value() == typed
    epochs.fill("101")
    epochs.press("Enter")
    panel.locator(".wb-error", has_text="less than or equal to 100").wait_for()
    assert epochs.input_value() == "101"
    panel.screenshot(path=SHOTS / "refused.png")
    panel.get_by_role("slider", name="Epochs").press("Home")
    panel.get_by_role("slider", name="Epochs").press("ArrowRight")
    panel.locator(".wb-code", has_text="epochs=0.5)").wait_for()
    assert epochs.input_value() == "0.5"
    epochs.fill("1")
    epochs.press("Enter")
    panel.locator(".wb-code", has_text="finetune.LoRA()").wait_for()


def test_a_click_finds_what_is_on_screen(tuned: Page) -> None:
    """ipywidgets holds a second change back, but not a click, and ipykernel may deal with two messages at once."""
    panel = tab(tuned, "Chat")
    for question in map("Hm {}?".format, range(10)):
        panel.get_by_label("Prompt").fill(question)
        panel.get_by_label("Prompt").blur()
        tuned.evaluate(
            """() => {
              const box = document.querySelector(".wb-row input[type=checkbox]");
              box.click();
              box.click();
              [...document.querySelectorAll(".wb-tabs button")].find((each) => each.textContent === "Send").click();
            }"""
        )
        panel.locator(".wb-asked", has_text=question).wait_for()
        idle(tuned)


def test_moving_a_knob_shows_what_it_would_do(tuned: Page) -> None:
    panel = tab(tuned, "Prune")
    panel.get_by_label("Live preview").check()
    panel.locator(".wb-answer", has_text="prune.Wanda()").wait_for()
    divergence = panel.locator(".wb-numbers b").first
    before = float(divergence.inner_text().split()[0])
    panel.get_by_role("slider", name="Sparsity").focus()
    for _ in range(20):
        tuned.keyboard.press("ArrowRight")
    panel.locator(".wb-answer", has_text="prune.Wanda(sparsity=0.6)").wait_for()
    assert float(divergence.inner_text().split()[0]) > before
    panel.get_by_label("Ask").press_sequentially("aa bb dd")
    assert tuned.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length") == 2
    panel.get_by_label("Live preview").uncheck()
    panel.locator(".wb-numbers").wait_for(state="hidden")


def test_a_clicked_cell_stays_dense(tuned: Page) -> None:
    layer = "1.mlp.up_proj"
    panel = tab(tuned, "Prune")
    panel.get_by_role("button", name="Measure sensitivity").click()
    panel.locator(".wb-done", has_text="Measured").wait_for()
    plot = panel.locator(".js-plotly-plot").first
    plot.locator(".heatmaplayer").first.wait_for()
    plot.scroll_into_view_if_needed()
    cell = plot.evaluate(CELL, layer)
    tuned.mouse.move(cell["x"], cell["y"])
    tuned.locator(".hoverlayer .hovertext", has_text=layer).wait_for()
    for press in (tuned.mouse.down, tuned.mouse.up):  # Plotly passes over a click within 50 ms of a movement
        tuned.wait_for_timeout(300)
        press()
    panel.locator(".wb-code", has_text=f"exclude='{layer}'").wait_for()
    assert panel.get_by_label("Exclude", exact=True).input_value() == layer
    panel.get_by_text(f"1 of 14 layers excluded: {layer}").wait_for()
    panel.get_by_role("button", name="Apply").click()
    row(tuned, "Wanda").wait_for()
    panel.get_by_role("button", name="What changed").click()
    panel.locator(".wb-done", has_text="against").wait_for()
    shown = panel.locator(".js-plotly-plot").nth(1)
    shown.locator(".heatmaplayer").first.wait_for()
    assert shown.evaluate(CELL, f"model.layers.{layer}")["z"] == 0
    assert shown.evaluate(CELL, "model.layers.0.mlp.up_proj")["z"] > 10


def test_a_training_is_watched_held_and_ended(tuned: Page) -> None:
    panel = tab(tuned, "Fine-tune")
    panel.get_by_role("slider", name="Epochs").press("End")
    panel.locator(".wb-code", has_text="epochs=100.0").wait_for()
    panel.get_by_role("button", name="Apply").click()
    pause = panel.get_by_role("button", name="Pause")
    pause.wait_for()
    panel.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    button = pause.element_handle()
    note(training_pause_ms=tuned.evaluate(CLICK_TO_CHANGE, [button, button]))
    held = panel.get_by_text(re.compile(r"\d+ of \d+ steps; validation loss .*; paused\."))
    held.wait_for()
    show(tuned)
    panel.screenshot(path=SHOTS / "training.png")
    at = held.inner_text()
    tuned.wait_for_timeout(500)
    assert held.inner_text() == at
    panel.get_by_role("button", name="Resume").click()
    panel.get_by_role("button", name="Finish now").click()
    row(tuned, "LoRA").wait_for()
    panel.get_by_text("ended.").wait_for()
    assert pause.is_disabled()


def test_an_adapter_follows_a_slider(tuned: Page) -> None:
    panel = tab(tuned, "Fine-tune")
    if row(tuned, "LoRA").count() == 0:
        panel.get_by_role("button", name="Apply").click()
        row(tuned, "LoRA").wait_for()
    choose(panel, "Strength")
    panel.get_by_label("Apply to").select_option("LoRA")
    panel.get_by_label("Live preview").check()
    panel.locator(".wb-answer", has_text="finetune.Strength()").wait_for()
    panel.get_by_role("slider", name="Strength").press("Home")
    panel.locator(".wb-answer", has_text="finetune.Strength(strength=0.0)").wait_for()
    panel.screenshot(path=SHOTS / "strength.png")


POINT = """(plot) => {
  const front = plot.data.findIndex((each) => each.name === "front"), axes = plot._fullLayout;
  const place = plot.getBoundingClientRect(), at = plot.calcdata[front][0];
  const x = axes.xaxis.c2p(at.x) + axes.xaxis._offset + place.x;
  const y = axes.yaxis.c2p(at.y) + axes.yaxis._offset + place.y;
  return { x, y, trial: plot.data[front].customdata[0] };
}"""  # where the first point of the front is on the page, and the trial's number


def test_from_a_goal_to_a_variant(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    """A bad bound is said; a search shows its front; a click on a point puts that variant on the list."""
    page = opened(window, site[1], "goal", site[0], bench_cell(folders["llama"], test=16), "bench")
    panel = tab(page, "Search")
    show(page)
    page.locator(".wb-bench").screenshot(path=SHOTS / "search-empty.png")
    words = panel.get_by_label("is", exact=True).first
    words.fill("less please")
    panel.get_by_role("button", name="Search").click()
    panel.locator(".wb-error", has_text="it is said as in").wait_for()
    page.locator(".wb-bench").screenshot(path=SHOTS / "search-error.png")
    words.fill("<= 1.5 * baseline")
    panel.get_by_label("Combine").select_option(label=["Quantize"])
    panel.get_by_label("Budget").fill("60s")
    panel.get_by_role("button", name="Search").click()
    panel.locator(".wb-done", has_text="the answer is below").wait_for(timeout=300 * SECONDS)
    panel.locator("b", has_text="all bounds are kept").wait_for()
    show(page)
    for theme in ("Light", "Dark"):
        command(page, "apputils:change-theme", theme=f"JupyterLab {theme}")
        page.wait_for_function("(t) => document.body.dataset.jpThemeName === t", arg=f"JupyterLab {theme}")
        page.locator(".wb-bench").screenshot(path=SHOTS / f"search-found-{theme.lower()}.png")
    command(page, "apputils:change-theme", theme="JupyterLab Light")
    plot = panel.locator(".js-plotly-plot")
    plot.scroll_into_view_if_needed()
    at = plot.evaluate(POINT)
    page.mouse.move(at["x"] + 60, at["y"] + 60)  # Plotly shows nothing of a point that the mouse appears on
    page.mouse.move(at["x"], at["y"], steps=8)
    page.locator(".hoverlayer .hovertext", has_text=f"trial {at['trial']}").wait_for()
    for press in (page.mouse.down, page.mouse.up):
        page.wait_for_timeout(300)
        press()
    row(page, f"trial {at['trial']}").wait_for()
    panel.get_by_role("button", name="What would I gain?").click()
    panel.locator(".wb-error", has_text="There is no bound on score to loosen").wait_for()
    assert errors(page) == []
    page.close()


def test_a_killed_kernel_loses_nothing(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    """One sentence instead of broken links; what was shown can still be read; the cell run again brings it back."""
    load = bench_cell(folders["llama"])
    page = opened(window, site[1], "killed", site[0], f"{load}\nprint('kernel', os.getpid())", "bench")
    pid = int(page.locator(".jp-OutputArea-output", has_text="kernel").first.inner_text().split()[-1])
    panel = tab(page, "Quantize")
    panel.get_by_role("button", name="Apply").click()
    row(page, "NF4").wait_for()
    idle(page)
    os.kill(pid, signal.SIGKILL)
    page.locator(".wb-bench.jupyter-widgets-disconnected").wait_for()
    show(page)
    gone = page.locator(".wb-bench.jupyter-widgets-disconnected")
    said = "(bench) => getComputedStyle(bench, '::before').content"
    assert "The kernel of this bench is gone" in gone.evaluate(said)
    broken = "[...document.querySelectorAll('.wb-bench .jupyter-widgets-disconnected:not(.wb-place)')]"
    icons = f"() => {broken}.filter((each) => getComputedStyle(each, '::before').content !== 'none').length"
    assert page.evaluate(icons) == 0
    assert row(page, "NF4").is_visible()
    gone.screenshot(path=SHOTS / "kernel-gone.png")
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    run_all(page, 90)
    page.locator(".wb-restore .wb-message", has_text="left 1 variant (NF4)").wait_for()
    show(page)
    page.locator(".wb-bench").last.screenshot(path=SHOTS / "restore-offer.png")
    page.get_by_role("button", name="Restore", exact=True).click()
    row(page, "NF4").wait_for()
    page.locator(".wb-done", has_text="Restored: 1 variant").wait_for()
    page.close()
