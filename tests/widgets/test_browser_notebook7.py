"""The bench in Notebook 7, which is another page than JupyterLab's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import lab, workspace
from page import (
    SECONDS,
    SHOTS,
    Page,
    bench_cell,
    choose,
    errors,
    idle,
    open_notebook,
    opened,
    playwright_api,
    row,
    run_all,
    show,
    tab,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder laid out as the repository and the address of a Notebook 7 on it."""
    folder = workspace(tmp_path_factory.mktemp("notebook"))
    with lab(folder, "notebook") as address:
        yield folder, address


def used(page: Page, variant: str) -> None:
    """Make a variant with a panel, open every kind of tab, compare, and see the figure."""
    panel = tab(page, "Quantize")
    choose(panel, variant)
    panel.get_by_role("button", name="Apply").click()
    row(page, variant).wait_for(timeout=120 * SECONDS)
    idle(page)
    tab(page, "Chat").get_by_label("Prompt").wait_for()
    panel = tab(page, "Compare")
    panel.get_by_role("button", name="Compare").click()
    panel.locator(".wb-done", has_text="Measured").wait_for(timeout=180 * SECONDS)
    panel.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    show(page)


def test_a_bench_is_used(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    page = opened(window, site[1], "seven", site[0], bench_cell(folders["llama"]), "bench")
    assert "/notebooks/notebooks/" in page.url
    used(page, "NF4")
    page.locator(".wb-bench").screenshot(path=SHOTS / "notebook7.png")
    assert errors(page) == []
    page.close()


@pytest.mark.model
@pytest.mark.timeout(1200)
def test_the_quickstart_runs(site: tuple[Path, str], window: "playwright_api.BrowserContext") -> None:
    page = open_notebook(window, site[1], "00_quickstart.ipynb")
    run_all(page, 900)
    page.locator(".jp-OutputArea .js-plotly-plot .main-svg").first.wait_for()
    panel = tab(page, "Prompt")
    panel.get_by_role("button", name="Apply").click()
    row(page, "System").wait_for()
    idle(page)
    show(page)
    page.screenshot(path=SHOTS / "notebook7-quickstart.png")
    assert errors(page) == []
    page.close()
