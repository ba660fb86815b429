"""Figures in a real browser: 40 variants drawn, and kept as a drawing, a picture and numbers."""

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lab import lab, workspace
from page import SHOTS, browsing, errors, opened

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
FIGURE = """
from widgets.parts.figure import Plot
from workbench.display import comparison_figure
from workbench.core.estimate import Estimate
run = wb.measure(base, bench.task, rounds=1, new_tokens=2, store=False)
runs = [run.model_copy(update={"variant": "=HYPERLINK(1)" if at == 3 else f"RTN {at} bit"}) for at in range(40)]
Plot(comparison_figure(wb.Comparison(runs), transparent=True))
"""


def test_forty_variants_are_drawn_and_kept_as_files(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = workspace(tmp_path)
    load = f"""
import workbench as wb
from widgets import Bench
base = wb.load({str(folders["llama"])!r}, device="cpu", dtype="float32")
bench = Bench(base, wb.read_text("data/prose", window=64, calibration=4, test=2))
"""
    with lab(folder) as address, browsing() as window:
        page = opened(window, address, "figures", folder, load, "bench", FIGURE)
        plot = page.locator(".js-plotly-plot")
        plot.locator(".ytick text").nth(39).wait_for()
        plot.scroll_into_view_if_needed()
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / "figure-40.png")
        kept = {}
        for kind in ("SVG", "PNG", "CSV"):
            with page.expect_download() as waiting:
                page.get_by_role("button", name=f", {kind}").press("Enter")
            kept[kind] = Path(waiting.value.path()).read_bytes()
        assert errors(page) == []
    assert ElementTree.fromstring(kept["SVG"]).tag.endswith("svg")
    assert kept["PNG"].startswith(b"\x89PNG\r\n")
    rows = list(csv.DictReader(io.StringIO(kept["CSV"].decode("utf-8-sig"))))
    assert len([each for each in rows if each["trace"] == "1"]) == 40
    assert float(rows[0]["x"]) > 0
    assert rows[3]["y"] == "'=HYPERLINK(1)"
