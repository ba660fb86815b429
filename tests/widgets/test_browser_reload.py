"""A page that is reloaded, and a server that is restarted: the bench is where it was, or says how to come back."""

import secrets
from pathlib import Path

import pytest
from lab import free_port, lab, workspace
from page import (
    KERNEL,
    SHOTS,
    Page,
    bench_cell,
    browsing,
    command,
    errors,
    idle,
    opened,
    playwright_api,
    reload,
    row,
    run_all,
    show,
    tab,
)

RELOADS = 5
pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]


def apply(page: Page, family: str, made: str) -> None:
    tab(page, family).get_by_role("button", name="Apply").click()
    row(page, made).wait_for()
    idle(page)


def compared(page: Page) -> "playwright_api.Locator":
    """The comparison's panel, its figure drawn."""
    panel = tab(page, "Compare")
    panel.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    return panel


def measured(page: Page) -> list[str]:
    """The rows of a comparison."""
    panel = tab(page, "Compare")
    panel.get_by_role("button", name="Compare").click()
    panel.locator(".wb-done", has_text="Measured").wait_for()
    return panel.locator(".wb-report tbody tr").all_inner_texts()


def saved(page: Page) -> None:
    command(page, "docmanager:save")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")


def test_a_page_reloaded_again_and_again_keeps_its_bench(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = workspace(tmp_path)
    with lab(folder) as address, browsing() as window:
        page = opened(window, address, "reloaded", folder, bench_cell(folders["llama"]), "bench")
        apply(page, "Quantize", "NF4")
        rows = measured(page)
        saved(page)
        for _ in range(RELOADS):
            reload(page)
            row(page, "NF4").wait_for()
            assert compared(page).locator(".wb-report tbody tr").all_inner_texts() == rows
            assert page.locator(".wb-bench .wb-card").count() == 1
        apply(page, "Prompt", "System")
        show(page)
        page.locator(".wb-bench").screenshot(path=SHOTS / "reloaded-five-times.png")
        assert errors(page) == []


def test_a_restarted_server_loses_nothing(tmp_path: Path, folders: dict[str, Path]) -> None:
    """The page stays readable; it finds the new server; the cell run again offers what there was."""
    folder, place = workspace(tmp_path), (free_port(), secrets.token_hex(16))
    with browsing() as window:
        with lab(folder, "lab", *place) as address:
            page = opened(window, address, "restarted", folder, bench_cell(folders["llama"]), "bench")
            apply(page, "Quantize", "NF4")
            apply(page, "Prompt", "System")
            rows = measured(page)
            saved(page)
        assert row(page, "NF4").is_visible()
        show(page)
        page.screenshot(path=SHOTS / "server-gone.png")
        with lab(folder, "lab", *place):
            page.reload()
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            page.wait_for_function(f"{KERNEL}?.status === 'idle'")
            page.screenshot(path=SHOTS / "server-back.png")
            run_all(page, 90)
            page.locator(".wb-restore .wb-message", has_text="left 2 variants (NF4, System)").wait_for()
            page.get_by_role("button", name="Restore", exact=True).click()
            page.locator(".wb-done", has_text="Restored: 2 variants").wait_for()
            assert row(page, "NF4").is_visible()
            assert row(page, "System").is_visible()
            assert compared(page).locator(".wb-report tbody tr").all_inner_texts() == rows
