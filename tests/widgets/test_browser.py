"""The bench as people meet it: a real JupyterLab, a real browser, the quickstart notebook and hostile text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import browser as chromium
import pytest
from lab import CHROMIUM_FLAGS, ROOT, lab, workspace, write_notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

playwright_api = pytest.importorskip("playwright.sync_api")
Page = playwright_api.Page

OUT = ROOT / "out"
SHOTS = OUT / "screenshots"
TABS = ("Prompt", "Retrieve", "Context", "Output", "Prune", "Quantize", "Fine-tune", "Distil", "Chat", "Compare")
XSS = "<img src=x onerror=window.__xss=1><script>window.__xss=1</script>"
SECONDS = 1000  # in Playwright's milliseconds
FITS = "[...document.querySelectorAll('.wb-bench')].every((bench) => bench.scrollWidth <= bench.clientWidth + 1)"
# Clicks, and gives the milliseconds until the element changes.
CLICK_TO_CHANGE = """([button, watched]) => new Promise((resolve) => {
  const started = performance.now();
  new MutationObserver((_, observer) => { observer.disconnect(); resolve(performance.now() - started); })
    .observe(watched, { subtree: true, childList: true, characterData: true, attributes: true });
  button.click();
})"""


# What the DOM itself throws carries no stack, so that nobody could tell whose call it was.
WITH_STACK = """
Error.stackTraceLimit = 50;
const remove = Node.prototype.removeChild;
Node.prototype.removeChild = function (child) {
  try { return remove.call(this, child); } catch (error) { throw new Error(error.message); }
};"""


def of_jupyterlab(line: str) -> bool:
    """Whether an uncaught error was raised and passed on by JupyterLab's own bundle alone, with no widget involved."""
    places = re.findall(r"(?:https?|blob|data):[^\s)]+", line)
    return bool(places) and all("/static/lab/" in place for place in places)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder laid out as the repository and the address of a JupyterLab on it."""
    folder = workspace(tmp_path_factory.mktemp("lab"))
    with lab(folder) as address:
        yield folder, address


@pytest.fixture(scope="module")
def window() -> Iterator["playwright_api.BrowserContext"]:
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium: set WORKBENCH_CHROMIUM or run scripts/browser.py")
    with playwright_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield opened.new_context(
            viewport={"width": 1280, "height": 1100}, permissions=["clipboard-read", "clipboard-write"]
        )
        opened.close()


def command(page: Page, name: str, **arguments: str) -> None:
    page.evaluate(
        "([name, given]) => window.jupyterapp.commands.execute(name, given).then(() => null)", [name, arguments]
    )


def open_notebook(window: "playwright_api.BrowserContext", address: str, name: str) -> Page:
    """A page with the notebook open and its kernel ready; what the console says is kept in `page.said`."""
    page = window.new_page()
    page.set_default_timeout(60 * SECONDS)
    page.add_init_script(WITH_STACK)
    page.said = []
    page.on("console", lambda line: line.type == "error" and page.said.append(line.text))
    page.on("pageerror", lambda error: page.said.append(f"{error}\n{error.stack}"))
    workspace = name.partition(".")[0]  # of its own, or JupyterLab would open the notebooks before it again beside it
    page.goto(address.replace("/lab?", f"/lab/workspaces/{workspace}/tree/notebooks/{name}?"))
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.content?.model?.cells?.length > 1")
    if page.locator("#jp-left-stack").is_visible():
        command(page, "application:toggle-left-area")
    return page


def run_all(page: Page, limit: int) -> None:
    """Run every cell and wait until the last one has a number; an error in any of them ends the test."""
    command(page, "notebook:run-all-cells")
    page.wait_for_function(
        """() => {
          const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells].filter((c) => c.type === "code");
          const failed = cells.some((c) => c.toJSON().outputs.some((o) => o.output_type === "error"));
          return failed || cells.at(-1).executionCount;
        }""",
        timeout=limit * SECONDS,
    )
    errors = page.evaluate(
        """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter((c) => c.type === "code")
          .flatMap((c) => c.toJSON().outputs).filter((o) => o.output_type === "error").map((o) => o.evalue)"""
    )
    assert errors == []
    page.wait_for_selector(".wb-bench .wb-card")


@pytest.fixture(scope="module")
def page(site: tuple[Path, str], window: "playwright_api.BrowserContext") -> Page:
    """The quickstart, run to its end."""
    opened = open_notebook(window, site[1], "00_quickstart.ipynb")
    run_all(opened, 420)
    return opened


def tab(page: Page, name: str) -> "playwright_api.Locator":
    """Open a tab of the bench; returns its panel."""
    page.locator(".wb-tabs").get_by_role("tab", name=name).click()
    return page.locator(".wb-tabs > .widget-tab-contents > .wb-panel:visible")


def idle(page: Page, limit: int = 120) -> None:
    page.wait_for_function("document.querySelector('.wb-status')?.textContent === 'Ready'", timeout=limit * SECONDS)


def row(page: Page, name: str) -> "playwright_api.Locator":
    label = page.locator(".widget-checkbox", has_text=re.compile(rf"^\W*{re.escape(name)}\W*$"))  # padded by ipywidgets
    return page.locator(".wb-row", has=label)


def choose(panel: "playwright_api.Locator", method: str) -> None:
    """Take a method from the drop-down of a family that has many."""
    methods = panel.get_by_label("Method", exact=True)
    named = re.compile(rf"\s*{method}\b")
    methods.select_option(label=next(name for name in methods.locator("option").all_inner_texts() if named.match(name)))


def ensure_variant(page: Page) -> None:
    """Have Int8Dynamic on the list beside the baseline, made with the panel."""
    if row(page, "Int8Dynamic").count() == 0:
        panel = tab(page, "Quantize")
        choose(panel, "Int8Dynamic")
        panel.get_by_role("button", name="Apply").click()
        row(page, "Int8Dynamic").wait_for()
        idle(page)


def show(page: Page) -> None:
    page.locator(".wb-bench").evaluate("(bench) => bench.scrollIntoView({ block: 'start' })")


def note(**numbers: object) -> None:
    """Keep what was measured as an artifact; a test does not judge how busy a machine is."""
    file = OUT / "browser.json"
    file.parent.mkdir(exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | numbers, indent=1))


def test_apply_answers_at_once_and_the_page_stays_usable(page: Page) -> None:
    panel = tab(page, "Quantize")
    choose(panel, "FP4")
    panel.locator(".wb-code", has_text="fp4 = base.apply(quantize.FP4())").wait_for()
    idle(page)
    watched = panel.element_handle()
    apply = panel.get_by_role("button", name="Apply").element_handle()
    apply_ms = page.evaluate(CLICK_TO_CHANGE, [apply, watched])
    page.wait_for_selector(".wb-busy")
    knob = panel.get_by_role("button", name="128", exact=True).element_handle()
    code = panel.locator(".wb-code").element_handle()
    knob_ms = page.evaluate(CLICK_TO_CHANGE, [knob, code])
    chat = page.locator(".wb-tabs").get_by_role("tab", name="Chat").element_handle()
    tab_ms = page.evaluate(
        """(tab) => new Promise((resolve) => {
          const started = performance.now();
          for (const kind of ["pointerdown", "mousedown", "pointerup", "mouseup", "click"])
            tab.dispatchEvent(new PointerEvent(kind, { bubbles: true, button: 0, clientX: 1, clientY: 1 }));
          requestAnimationFrame(() => resolve(performance.now() - started));
        })""",
        chat,
    )
    still_busy = page.locator(".wb-busy").count() > 0
    note(apply_click_ms=apply_ms, knob_to_code_ms=knob_ms, tab_switch_ms=tab_ms, measured_while_running=still_busy)
    row(page, "FP4").wait_for(timeout=120 * SECONDS)
    idle(page)
    assert tab(page, "Quantize").locator(".wb-done").is_visible()


def test_code_is_copied(page: Page) -> None:
    panel = tab(page, "Quantize")
    choose(panel, "LLMInt8")
    panel.locator(".wb-code", has_text="llmint8 = base.apply(quantize.LLMInt8())").wait_for()
    panel.get_by_role("button", name="Copy as code").click()
    panel.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "llmint8 = base.apply(quantize.LLMInt8())"


def test_two_answers_stream_side_by_side(page: Page) -> None:
    ensure_variant(page)
    panel = tab(page, "Chat")
    cells = page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length")
    panel.get_by_label("Prompt").press_sequentially("add a lobster, bb dd xx")
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length") == cells
    panel.get_by_label("Prompt").fill("What is a lobster?")
    panel.get_by_role("button", name="Send").click()
    page.wait_for_function(
        """() => { const said = [...document.querySelectorAll('.wb-turn:last-child .wb-said')];
                   return said.length >= 2 && said.every((each) => each.textContent.length > 20); }"""
    )
    assert page.locator(".wb-busy").count() == 1
    show(page)
    page.locator(".wb-bench").screenshot(path=SHOTS / "streaming.png")
    panel.get_by_role("button", name="Stop").click()
    panel.locator(".wb-message", has_text="Stopped").wait_for()
    idle(page)


def test_the_keyboard_is_enough(page: Page) -> None:
    tab(page, "Prompt")
    page.locator(".wb-tabs").get_by_role("tab", name="Prompt").focus()
    for _ in range(TABS.index("Chat")):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.wait_for()
    for _ in range(30):
        if prompt.evaluate("(box) => box === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.type("What is a boat?")
    for _ in range(10):
        if page.evaluate("document.activeElement.textContent") == "Send":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-busy")
    page.locator(".wb-asked", has_text="What is a boat?").wait_for()
    page.get_by_role("button", name="Cancel").click()
    idle(page)


def test_an_interrupted_kernel_leaves_the_bench_alive(page: Page) -> None:
    panel = tab(page, "Chat")
    panel.get_by_role("button", name="New conversation").click()
    panel.locator(".wb-empty").wait_for()
    panel.locator(".wb-message").wait_for(state="hidden")
    panel.get_by_label("Prompt").fill("Tell a long story.")
    panel.get_by_role("button", name="Send").click()
    panel.locator(".wb-asked", has_text="Tell a long story.").wait_for()
    command(page, "notebook:interrupt-kernel")
    page.wait_for_function("document.querySelector('.wb-turn:last-child .wb-said')?.textContent.length > 40")
    panel.get_by_role("button", name="Stop").click()
    idle(page)
    panel.locator(".wb-message", has_text="Stopped").wait_for()


def test_a_prompt_is_typed_tried_and_undone(page: Page) -> None:
    count = "window.jupyterapp.shell.currentWidget.content.model.cells.length"
    panel, before = tab(page, "Prompt"), page.evaluate(count)
    choose(panel, "System")
    panel.get_by_label("Text", exact=True).fill("")
    panel.get_by_label("Text", exact=True).press_sequentially("Add a bb dd xx 00 joke.")
    panel.get_by_label("Text", exact=True).press("Tab")
    panel.locator(".wb-prompt", has_text="Add a bb dd xx 00 joke.").wait_for()
    panel.get_by_label("Ask", exact=True).press_sequentially(" dd xx")
    panel.get_by_label("Ask", exact=True).blur()
    panel.locator(".wb-prompt", has_text=" dd xx").wait_for()
    assert page.evaluate(count) == before, "nothing typed is a shortcut of the notebook"
    panel.get_by_role("button", name="Answer", exact=True).click()
    panel.locator(".wb-beside td", has_text="first after").nth(1).wait_for()
    idle(page)
    show(page)
    panel.screenshot(path=SHOTS / "prompt-answered.png")
    panel.get_by_role("button", name="Undo").click()
    panel.locator(".wb-prompt", has_text="bb dd").wait_for(state="hidden")
    panel.get_by_role("button", name="Redo").click()
    panel.locator(".wb-prompt", has_text="Add a bb dd xx 00 joke.").wait_for()


def test_documents_are_looked_up(page: Page) -> None:
    panel = tab(page, "Retrieve")
    panel.get_by_label("Documents", exact=True).fill(str(ROOT / "data" / "handbook" / "documents"))
    panel.get_by_label("Documents", exact=True).press("Tab")
    panel.get_by_label("Ask", exact=True).fill("What speed limit applies on the ring road at Lindmoor Works?")
    panel.get_by_role("button", name="Show prompt").click()
    panel.locator(".wb-hits mark", has_text="Lindmoor").first.wait_for()
    panel.get_by_text("Retrieve: 44 documents").wait_for()
    panel.get_by_role("button", name="Answer", exact=True).click()
    panel.locator(".wb-beside", has_text="15 kilometres").wait_for()
    idle(page)
    panel.screenshot(path=SHOTS / "retrieve-answered.png")


def test_comparison_is_drawn(page: Page) -> None:
    ensure_variant(page)
    if row(page, "FP4").count():
        row(page, "FP4").get_by_role("checkbox").uncheck()
    panel = tab(page, "Compare")
    panel.locator(".wb-help", has_text="judging by").wait_for()
    for name, value in (("Examples", "4"), ("Rounds", "6")):
        readout = panel.locator(".widget-slider", has_text=name).locator(".widget-readout")
        readout.fill(value)
        readout.press("Enter")
    panel.get_by_role("button", name="Compare").click()
    panel.locator(".js-plotly-plot .scatterlayer").first.wait_for()
    panel.locator(".wb-done", has_text="Measured").wait_for(timeout=150 * SECONDS)
    assert panel.locator(".wb-report tbody tr").count() == 2
    panel.get_by_role("button", name="What changed").click()
    panel.locator(".js-plotly-plot .heatmaplayer").first.wait_for()
    idle(page)


def test_every_tab_is_accessible(page: Page) -> None:
    from axe_playwright_python.sync_playwright import Axe

    row(page, "SmolLM2-135M-Instruct").locator(".wb-icon").click()
    page.locator(".wb-edit:visible").wait_for()
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        command(page, "apputils:change-theme", theme=theme)
        page.wait_for_function("(t) => document.body.dataset.jpThemeName === t", arg=theme)
        for name in TABS:
            tab(page, name)
            found = Axe().run(page, context=".wb-bench").response["violations"]
            bad = [
                f"{each['id']}: {each['nodes'][0]['html'][:200]}"
                for each in found
                if each["impact"] in ("serious", "critical")
            ]
            assert bad == [], f"{theme}, {name}"
    command(page, "apputils:change-theme", theme="JupyterLab Light")
    row(page, "SmolLM2-135M-Instruct").locator(".wb-icon").click()


@pytest.mark.parametrize("width", [1000, 1280, 1600])
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_looks(page: Page, width: int, theme: str) -> None:
    page.set_viewport_size({"width": width, "height": 2300})
    command(page, "apputils:change-theme", theme=f"JupyterLab {theme}")
    page.wait_for_function("(t) => document.body.dataset.jpThemeName === t", arg=f"JupyterLab {theme}")
    for name in TABS:
        tab(page, name)
        show(page)
        bench = page.locator(".wb-bench")
        page.wait_for_function(FITS)  # figures follow their place's width a moment later
        bench.screenshot(path=SHOTS / f"{name.lower()}-{theme.lower()}-{width}.png")
    command(page, "apputils:change-theme", theme="JupyterLab Light")
    page.set_viewport_size({"width": 1280, "height": 1100})


def test_the_console_has_no_errors(page: Page) -> None:
    assert [line for line in page.said if not of_jupyterlab(line)] == []


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
wb.Variant.stream = lambda variant, text, **settings: iter([wb.Piece(xss, 1, 0.1)] * 3)
bench = Bench(base, task)
bench.add(base.apply(prompt.System(text=xss)))
"""
    write_notebook(
        site[0] / "notebooks" / "hostile.ipynb", setup, "bench", "wb.diff(base, bench.variants['System']).before"
    )
    page = open_notebook(window, site[1], "hostile.ipynb")
    run_all(page, 90)
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
        hostile.get_by_label("Name").fill(XSS)
        hostile.get_by_role("button", name=button).click()
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
    write_notebook(site[0] / "notebooks" / "again.ipynb", load, "Bench(base)", "Bench(base)")
    page = open_notebook(window, site[1], "again.ipynb")
    run_all(page, 90)
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
    load = f"""
import workbench as wb
from widgets import Bench
base = wb.load({str(folders["llama"])!r}, device="cpu", dtype="float32")
"""
    bench = "Bench(base, wb.read_text('data/prose', window=64, calibration=4, test=2))"
    write_notebook(site[0] / "notebooks" / "tune.ipynb", f"{load}\nimport os; os.chdir({str(site[0])!r})", bench)
    page = open_notebook(window, site[1], "tune.ipynb")
    run_all(page, 90)
    tab(page, "Prune").get_by_role("button", name="Wanda").click()
    yield page
    assert [line for line in page.said if not of_jupyterlab(line)] == []
    page.close()


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
    panel.get_by_role("slider", name="Epochs").focus()
    tuned.keyboard.press("End")
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
    panel.get_by_role("slider", name="Strength").focus()
    tuned.keyboard.press("Home")
    panel.locator(".wb-answer", has_text="finetune.Strength(strength=0.0)").wait_for()
    panel.screenshot(path=SHOTS / "strength.png")
