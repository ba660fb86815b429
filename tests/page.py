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


@contextmanager
def browsing() -> Iterator["playwright_api.BrowserContext"]:
    """A Chromium; a test without one is skipped."""
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium: set WORKBENCH_CHROMIUM or run scripts/browser.py")
    with playwright_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield opened.new_context(
            viewport={"width": 1280, "height": 1100}, permissions=["clipboard-read", "clipboard-write"]
        )
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
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.content?.model?.cells?.length > 1")
    if page.locator("#jp-left-stack").is_visible():
        command(page, "application:toggle-left-area")
    return page


def errors(page: Page) -> list[str]:
    """What the console said that is not JupyterLab's own, nor anywidget's on a page that is slow to load its code."""
    return [line for line in page.said if not of_jupyterlab(line) and "Failed to initialize model" not in line]


def opened(
    window: "playwright_api.BrowserContext", address: str, name: str, folder: Path, *cells: str, before: str = ""
) -> Page:
    """A page with a notebook of these cells, run to its end; the working folder is where `data` is."""
    first, *more = cells
    write_notebook(folder / "notebooks" / f"{name}.ipynb", f"import os\nos.chdir({str(folder)!r})\n{first}", *more)
    page = open_notebook(window, address, f"{name}.ipynb", before)
    run_all(page, 90)
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
    page.wait_for_selector(".wb-bench .wb-panel:visible")


def tab(page: Page, name: str) -> "playwright_api.Locator":
    """Open a tab of the bench; returns its panel."""
    page.locator(".wb-tabs").get_by_role("tab", name=name).click()
    return page.locator(".wb-tabs > .widget-tab-contents > .wb-panel:visible")


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
