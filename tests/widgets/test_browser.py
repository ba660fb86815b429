"""The bench as people meet it: a real JupyterLab, a real browser, the model that comes with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lab import ROOT
from page import (
    CLICK_TO_CHANGE,
    SECONDS,
    SHOTS,
    TABS,
    Page,
    choose,
    command,
    errors,
    idle,
    note,
    open_notebook,
    opened,
    playwright_api,
    row,
    show,
    tab,
)

FITS = "[...document.querySelectorAll('.wb-bench')].every((bench) => bench.scrollWidth <= bench.clientWidth + 1)"
BENCH = """
import workbench as wb
from widgets import Bench
base = wb.load()
bench = Bench(base, wb.read_text("data/prose", window=128, calibration=4, test=8))
"""
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def page(site: tuple[Path, str], window: "playwright_api.BrowserContext") -> Page:
    """A bench on the embedded model."""
    return opened(window, site[1], "bench", site[0], BENCH, "bench")


def test_the_quickstart_opens_ready_to_run(site: tuple[Path, str], window: "playwright_api.BrowserContext") -> None:
    lesson = open_notebook(window, site[1], "00_quickstart.ipynb")
    lesson.get_by_role("heading", name="Quickstart").wait_for()
    assert lesson.locator(".jp-Dialog").count() == 0
    assert errors(lesson) == []
    lesson.close()


def ensure_variant(page: Page) -> None:
    """Have Int8Dynamic on the list beside the baseline, made with the panel."""
    if row(page, "Int8Dynamic").count() == 0:
        panel = tab(page, "Quantize")
        choose(panel, "Int8Dynamic")
        panel.get_by_role("button", name="Apply").click()
        row(page, "Int8Dynamic").wait_for()
        idle(page)


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


def tab_to(page: Page, there: Callable[[], bool]) -> None:
    """Press Tab until the focus is where it should be; fails with where it went."""
    seen = []
    for _ in range(40):
        if there():
            return
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.outerHTML.slice(0, 120)"))
    raise AssertionError("the focus went to:\n" + "\n".join(seen))


def new_conversation(page: Page) -> "playwright_api.Locator":
    panel = tab(page, "Chat")
    panel.get_by_role("button", name="New conversation").click()
    panel.locator(".wb-empty").wait_for()
    panel.locator(".wb-message").wait_for(state="hidden")
    return panel


def test_the_keyboard_is_enough(page: Page) -> None:
    new_conversation(page)  # what an earlier test left there may be answered in no time
    tab(page, "Prompt")
    page.locator(".wb-tabs").get_by_role("tab", name="Prompt").focus()
    for _ in range(TABS.index("Chat") - TABS.index("Prompt")):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.wait_for()
    tab_to(page, lambda: prompt.evaluate("(box) => box === document.activeElement"))
    page.keyboard.type("Tell a long story.")
    assert prompt.input_value() == "Tell a long story."
    tab_to(page, lambda: page.evaluate("document.activeElement.textContent") == "Send")
    page.keyboard.press("Enter")
    page.locator(".wb-asked", has_text="Tell a long story.").wait_for()
    page.get_by_role("button", name="Cancel").click()
    idle(page)


def test_an_interrupted_kernel_leaves_the_bench_alive(page: Page) -> None:
    panel = new_conversation(page)
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
        panel.get_by_label(name, exact=True).last.fill(value)
        panel.get_by_label(name, exact=True).last.press("Enter")
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
    colours = {"runOnly": {"type": "tag", "values": ["cat.color"]}}  # a theme changes those alone
    looks = [("Light", 1280, {}), ("Light", 640, {}), ("Dark", 1280, colours), ("Dark High Contrast", 1280, colours)]
    for theme, width, some in looks:  # 640 is 1280 at 200 %
        page.set_viewport_size({"width": width, "height": 1100})
        command(page, "apputils:change-theme", theme=f"JupyterLab {theme}")
        page.wait_for_function("(t) => document.body.dataset.jpThemeName === t", arg=f"JupyterLab {theme}")
        for name in TABS:
            tab(page, name)
            options = {"resultTypes": ["violations"]} | some
            found = Axe().run(page, context=".wb-bench", options=options).response["violations"]
            bad = [
                f"{each['id']}: {each['nodes'][0]['html'][:200]}"
                for each in found
                if each["impact"] in ("serious", "critical")
            ]
            assert bad == [], f"{theme}, {width}, {name}"
    page.set_viewport_size({"width": 1280, "height": 1100})
    command(page, "apputils:change-theme", theme="JupyterLab Light")
    row(page, "SmolLM2-135M-Instruct").locator(".wb-icon").click()


@pytest.mark.parametrize(("theme", "width"), [("Light", 1000), ("Light", 1280), ("Light", 1600), ("Dark", 1280)])
def test_looks(page: Page, theme: str, width: int) -> None:
    """A theme changes no size."""
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
    assert errors(page) == []
