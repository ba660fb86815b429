"""Figures in a real browser: drawn wherever they are looked at, and kept as a picture or as numbers in one click."""

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from page import SHOTS, Page, command, errors, opened, playwright_api, tab

HOSTILE = "=1+1"
XSS = '-<b>a</b>, $x$ "é" & co'
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
MEASURED = """
import workbench as wb
from widgets import Bench
from workbench.steps import prompt
base = wb.load({folder!r}, device="cpu", dtype="float32", name="base")
task = wb.read_text("data/prose", window=64, calibration=4, test=2)
bench = Bench(base, task)
first = wb.measure(base, task, examples=2, rounds=1, new_tokens=2)
def scaled(estimate, factor):
    return estimate.model_copy(update={{end: factor * getattr(estimate, end) for end in ("value", "low", "high")}})
def run(name, factor):
    found = {{metric: scaled(each, factor) for metric, each in first.estimates.items()}}
    return first.model_copy(update={{"variant": name, "estimates": found}})
few = wb.Comparison([run(name, 1 + at / 20) for at, name in enumerate(["base", {hostile!r}, {xss!r}])])
names = ["base", *("RTN %d bit g%d with a long name and its end %d" % (at % 8, at, at) for at in range(39))]
for name in names[1:]:
    bench.add(base.apply(prompt.System(text=name)).under(name))
many = wb.Comparison([run(name, 1 + at / 20) for at, name in enumerate(names)])
"""
ALONE = """
from widgets.panes.compare import Compare
from widgets.parts.style import framed
from widgets.session import Session
pane = Compare(Session(base, task))
pane.recall(few)
framed(pane.widget)
"""
DRAWN = """([place, points]) => [...document.querySelectorAll(`${place} .js-plotly-plot`)].some((plot) => {
  const drawing = plot.querySelector(".main-svg");
  return drawing?.checkVisibility() && drawing.getBoundingClientRect().width > 300
    && plot.querySelectorAll(".scatterlayer .point").length === 3 * points;
})"""  # the comparison's three scatters, as wide as one can read


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path]) -> str:
    """A cell that makes a bench with 40 variants, and comparisons of three with hostile names and of all."""
    return MEASURED.format(folder=str(folders["llama"]), hostile=HOSTILE, xss=XSS)


@pytest.fixture(scope="module")
def few(site: tuple[Path, str], window: "playwright_api.BrowserContext", measured: str) -> Iterator[Page]:
    """The pane alone with a comparison of three: what a whole bench takes to come back is ipywidgets' own affair."""
    page = opened(window, site[1], "few", site[0], f"{measured}\nbench.close()", ALONE)
    yield page
    assert errors(page) == []
    page.close()


def downloaded(page: Page, panel: "playwright_api.Locator", kind: str, keyboard: bool = False) -> bytes:
    button = panel.get_by_role("button", name=f"Download this figure as {kind}", exact=True)
    with page.expect_download() as started:
        if keyboard:
            button.focus()
            page.keyboard.press("Enter")
        else:
            button.click()
    assert started.value.suggested_filename == f"figure.{kind.lower()}"
    return Path(started.value.path()).read_bytes()


def test_forty_variants_are_drawn_in_a_tab_that_was_hidden_and_in_a_second_view(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", measured: str
) -> None:
    page = opened(window, site[1], "many", site[0], measured, "bench", "bench.compare.recall(many)")
    panel = tab(page, "Compare")
    page.wait_for_function(DRAWN, arg=["", 40])
    labels = panel.locator(".yaxislayer-above .ytick text")
    assert labels.count() == 40
    assert "…" in labels.last.text_content()
    panel.locator(".js-plotly-plot").screenshot(path=SHOTS / "figure-40.png")
    page.evaluate("() => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1; }")
    command(page, "notebook:create-output-view")
    page.wait_for_function(DRAWN, arg=[".jp-LinkedOutputView", 40])
    page.locator(".jp-LinkedOutputView .wb-downloads").scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "figure-second-view.png")
    assert errors(page) == []
    page.close()


def test_a_figure_is_drawn_after_a_reload(few: Page) -> None:
    few.wait_for_function(DRAWN, arg=["", 3])
    command(few, "docmanager:save")
    few.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    few.reload()
    few.wait_for_function(DRAWN, arg=["", 3])
    few.locator(".wb-bench").screenshot(path=SHOTS / "figure-reloaded.png")


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_figure_is_kept_as_a_picture(few: Page, theme: str) -> None:
    panel = few.locator(".wb-panel")
    few.wait_for_function(DRAWN, arg=["", 3])
    command(few, "apputils:change-theme", theme=f"JupyterLab {theme}")
    few.wait_for_function("(t) => document.body.dataset.jpThemeName === t", arg=f"JupyterLab {theme}")
    drawing = downloaded(few, panel, "SVG", keyboard=True)
    root = ET.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.get("width")) > 300
    (SHOTS / f"figure-{theme.lower()}.svg").write_bytes(drawing)
    paper = root.find("{http://www.w3.org/2000/svg}rect")
    assert "fill: rgb(255, 255, 255); fill-opacity: 1" in paper.get("style")
    assert paper.get("width") == root.get("width")
    texts = [each for each in root.iter("{http://www.w3.org/2000/svg}text") if each.text]
    assert any(each.text == XSS for each in texts)
    assert all("fill: rgb(31, 31, 31)" in each.get("style") for each in texts)
    painted = downloaded(few, panel, "PNG")
    assert painted.startswith(b"\x89PNG\r\n\x1a\n")
    (SHOTS / f"figure-{theme.lower()}.png").write_bytes(painted)
    panel.locator(".wb-downloads").screenshot(path=SHOTS / f"downloads-{theme.lower()}.png")


def test_a_figure_is_kept_as_numbers_that_a_spreadsheet_does_not_run(few: Page) -> None:
    text = downloaded(few, few.locator(".wb-panel"), "CSV").decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    speeds = [each for each in rows if each["trace"].startswith("Time per token")]
    assert [each["y"] for each in speeds] == ["base", f"'{HOSTILE}", f"'{XSS}"]
    assert float(speeds[2]["x"]) == pytest.approx(1.1 * float(speeds[0]["x"]))
    assert not any(value.startswith(tuple("=+-@\t\r")) for each in rows for value in each.values() if not number(value))


def number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
