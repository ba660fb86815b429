"""What the browser tests do on a page: open a notebook, run it, find the parts of a bench, keep what was measured."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser as chromium
import pytest
from lab import CHROMIUM_FLAGS, ROOT, write_notebook

playwright_api = pytest.importorskip("playwright.sync_api")
Page = playwright_api.Page

KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
OUT = ROOT / "out"
SHOTS = OUT / "screenshots"
SECONDS = 1000  # in Playwright's milliseconds
TABS = (
    "Load",
    "Prompt",
    "Retrieve",
    "Context",
    "Output",
    "Prune",
    "Quantize",
    "Fine-tune",
    "Distil",
    "Runtime",
    "Chat",
    "Compare",
    "Search",
    "Serve",
)
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


def bench_cell(folder: Path, more: str = "", test: int = 2) -> str:
    """A cell that makes a bench on a tiny model.

    Args:
        folder: of the model.
        more: lines that follow.
        test: windows that are scored.
    """
    return f"""
import workbench as wb
from widgets import Bench
from workbench.steps import prompt, quantize
base = wb.load({str(folder)!r}, device="cpu", dtype="float32")
bench = Bench(base, wb.read_text("data/prose", window=64, calibration=4, test={test}))
{more}"""


@contextmanager
def browsing() -> Iterator["playwright_api.BrowserContext"]:
    """A Chromium; a test without one is skipped."""
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium: set WORKBENCH_CHROMIUM or run scripts/browser.py")
    with playwright_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        window = opened.new_context(
            viewport={"width": 1280, "height": 1100}, permissions=["clipboard-read", "clipboard-write"]
        )
        yield window
        opened.close()


def of_jupyterlab(line: str) -> bool:
    """Whether an uncaught error was raised and passed on by JupyterLab's own bundle alone, with no widget involved."""
    places = re.findall(r"(?:https?|blob|data):[^\s)]+", line)
    return bool(places) and all("/static/lab/" in place or "/static/notebook/" in place for place in places)


def command(page: Page, name: str, **arguments: str) -> None:
    page.evaluate(
        "([name, given]) => window.jupyterapp.commands.execute(name, given).then(() => null)", [name, arguments]
    )


def open_notebook(window: "playwright_api.BrowserContext", address: str, name: str, before: str = "") -> Page:
    """A page with the notebook open and its kernel ready; what the console says is kept in `page.said`.

    Args:
        before: a script for the page to run first.
    """
    page = window.new_page()
    page.set_default_timeout(60 * SECONDS)
    page.add_init_script(WITH_STACK + before)
    page.said = []
    page.on("console", lambda line: line.type == "error" and page.said.append(line.text))
    page.on("pageerror", lambda error: page.said.append(f"{error}\n{error.stack}"))
    workspace = name.partition(".")[0]  # of its own, or JupyterLab would open the notebooks before it again beside it
    page.goto(
        address.replace("/lab?", f"/lab/workspaces/{workspace}/tree/notebooks/{name}?").replace(
            "/notebook?", f"/notebooks/notebooks/{name}?"
        )
    )
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(f"{KERNEL}?.status === 'idle'")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.content?.model?.cells?.length > 1")
    # What a kernel opens before ipywidgets listens is closed again by JupyterLab, and never shown.
    page.wait_for_function(f"'jupyter.widget' in {KERNEL}._targetRegistry")
    if page.locator("#jp-left-stack").is_visible():
        command(page, "application:toggle-left-area")
    return page


def errors(page: Page) -> list[str]:
    """What the console said that is not JupyterLab's own, nor ipywidgets' or anywidget's on a page that is slow."""
    slow = ("Failed to initialize model", "widget model not found")
    return [line for line in page.said if not of_jupyterlab(line) and not any(each in line for each in slow)]


def opened(
    window: "playwright_api.BrowserContext", address: str, name: str, folder: Path, *cells: str, before: str = ""
) -> Page:
    """A page with a notebook of these cells, run to its end; the working folder is where `data` is."""
    first, *more = cells
    write_notebook(folder / "notebooks" / f"{name}.ipynb", f"import os\nos.chdir({str(folder)!r})\n{first}", *more)
    page = open_notebook(window, address, f"{name}.ipynb", before)
    run_all(page, 90)
    return page


def reload(page: Page) -> None:
    """Load the page again and wait for its bench.

    ipywidgets' `get_model` asks for two seconds whether a model is there. If those end while a busy page is making it,
    it says "model not found" and does not look again (base-manager 1.0.13): whoever sees that reloads once more.
    """
    shown, lost = page.locator(".wb-bench .wb-panel:visible"), page.get_by_text("model not found")
    page.reload()
    shown.or_(lost).wait_for()
    if lost.is_visible():
        page.reload()
        shown.wait_for()


def keep_failed(window: "playwright_api.BrowserContext") -> None:
    """Keep what the pages of a failed test look like, and what their consoles said."""
    for number, page in enumerate(window.pages):
        page.screenshot(path=SHOTS / f"failed-{number}.png")
        print(page.url, *getattr(page, "said", []), sep="\n")


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
    page.wait_for_selector(".wb-bench .wb-panel:visible")


def tab(page: Page, name: str) -> "playwright_api.Locator":
    """Open a tab of the bench; returns its panel."""
    page.locator(".wb-tabs").get_by_role("tab", name=name).click()
    panel = page.locator(".wb-tabs > .widget-tab-contents .wb-panel:visible")
    panel.wait_for()  # one that is opened for the first time comes from the kernel
    return panel


def idle(page: Page, limit: int = 120) -> None:
    page.wait_for_function("document.querySelector('.wb-status')?.textContent === 'Ready'", timeout=limit * SECONDS)


def row(page: Page, name: str) -> "playwright_api.Locator":
    return page.locator(".wb-row", has=page.locator("bdi", has_text=re.compile(rf"^{re.escape(name)}$")))


def choose(panel: "playwright_api.Locator", method: str) -> None:
    """Take a method from the drop-down of a family that has many."""
    methods = panel.get_by_label("Step", exact=True)
    named = re.compile(rf"\s*{method}\b")
    methods.select_option(label=next(name for name in methods.locator("option").all_inner_texts() if named.match(name)))


def show(page: Page) -> None:
    page.locator(".wb-bench").evaluate("(bench) => bench.scrollIntoView({ block: 'start' })")


def note(**numbers: object) -> None:
    """Keep what was measured as an artifact; a test does not judge how busy a machine is."""
    file = OUT / "browser.jsonl"
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(numbers) + "\n")
