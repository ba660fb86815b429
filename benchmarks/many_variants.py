"""How soon a bench with 40 variants shows a change: its list and its chart, in a real JupyterLab in a real browser.

python benchmarks/many_variants.py

In the page: a filter typed until the rows stand, and the box of a variant ticked until the kernel has dealt with it and
the list is drawn. From the kernel: a comparison of 40 variants handed to the Compare pane, in turns with one of 39,
until the page has drawn it; both look at the same clock. The model is the default one, the variants differ in their
prompts.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, write_result

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]
import browser as chromium  # noqa: E402
from lab import CHROMIUM_FLAGS, lab, workspace, write_notebook  # noqa: E402
from page import open_notebook, run_all, tab  # noqa: E402

MANY, TIMES = 40, 10
SETUP = f"""
import time
import workbench as wb
from widgets import Bench
from workbench.measurement.comparison import Comparison
from workbench.steps import prompt

text = wb.read_text("../data/prose", window=32, calibration=1, test=1)
base = wb.load(device="cpu")
bench = Bench(base, text)
for number in range({MANY} - 1):
    bench.add(base.apply(prompt.System(text=f"Number {{number}}.")))
found = wb.compare(list(bench.variants.values()), text, rounds=1, new_tokens=2, store=False)
bench.compare.recall(found)
"""
REDRAW = f"""
import json
handed = []
for number in range({TIMES}):
    time.sleep(2)
    handed.append(1000 * time.time())
    bench.compare.recall(Comparison(found.runs[: {MANY} - 1 + number % 2]))
time.sleep(2)
print("HANDED", json.dumps(handed))
"""
FILTER = """async (wanted) => {
  const box = document.querySelector(".wb-fold input[type=search]"), begun = performance.now();
  box.value = wanted;
  box.dispatchEvent(new Event("input"));
  await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
  return performance.now() - begun;
}"""
TICK = """async (number) => {
  const box = document.querySelectorAll(".wb-row input[type=checkbox]")[number], begun = performance.now();
  box.click();
  await new Promise((next) => setTimeout(next));
  while (document.querySelector("[data-pending]")) await new Promise((next) => setTimeout(next, 1));
  await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
  return performance.now() - begun;
}"""
LISTEN = """() => {
  window.drawn = [];
  document.querySelector(".wb-bench .js-plotly-plot").on("plotly_afterplot", () => window.drawn.push(Date.now()));
}"""


def main() -> None:
    """Open a notebook, change things in the page and from the kernel, and write how long they took to be seen."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = workspace(Path(place))
        write_notebook(folder / "notebooks" / "many.ipynb", SETUP, "bench", "None")
        with lab(folder) as address:
            opened = playwright.chromium.launch(executable_path=chromium.find(), args=list(CHROMIUM_FLAGS))
            page = open_notebook(opened.new_context(viewport={"width": 1280, "height": 1100}), address, "many.ipynb")
            run_all(page, 900)
            filtered = [page.evaluate(FILTER, wanted) for wanted in ("Number 1", "") * (TIMES // 2)]
            ticked = [page.evaluate(TICK, number) for number in range(1, TIMES + 1)]
            tab(page, "Compare").locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
            page.evaluate(LISTEN)
            page.evaluate(
                """(code) => {
                  const notebook = window.jupyterapp.shell.currentWidget.content;
                  notebook.model.cells.get(2).sharedModel.setSource(code);
                  notebook.activeCellIndex = 2;
                  window.jupyterapp.commands.execute("notebook:run-cell");
                }""",
                REDRAW,
            )
            said = page.locator(".jp-OutputArea-output", has_text="HANDED").last
            said.wait_for(timeout=120_000)
            handed = json.loads(said.inner_text().split("HANDED", 1)[1])
            drawn = page.evaluate("window.drawn")
            opened.close()
    redrawn = [next(each for each in drawn if each >= begun) - begun for begun in handed]
    write_result(
        "many_variants",
        {
            "variants": MANY,
            "milliseconds, median and longest": {
                name: [round(statistics.median(found), 1), round(max(found), 1)]
                for name, found in {
                    "filter typed": filtered,
                    "variant ticked": ticked,
                    "comparison drawn": redrawn,
                }.items()
            },
        },
    )


if __name__ == "__main__":
    main()
