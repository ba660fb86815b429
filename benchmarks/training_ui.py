"""What watching a training costs, and how long a click waits meanwhile: a real JupyterLab in a real browser.

python benchmarks/training_ui.py

The same LoRA training runs through the panel, with its curves on screen, and as a job of the bench that draws nothing,
in turns, browser open both times: seconds from start to end of the job, drawing included. These differ from round to
round by more than drawing can cost, so its parts are measured, too: the seconds that the training's own thread spends
on drawing, and the processor time of the browser and JupyterLab's server. A click on Pause is timed in the page, from
the click to the changed button, while the model is in the middle of a step.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, write_result

from workbench.core.estimate import paired_ratio

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]
import browser as chromium  # noqa: E402
from lab import CHROMIUM_FLAGS, lab, workspace, write_notebook  # noqa: E402
from page import CLICK_TO_CHANGE, open_notebook, run_all, tab  # noqa: E402

ROUNDS, STEPS, CLICKS = 3, 4, 8
SETUP = f"""
import warnings
warnings.simplefilter("ignore")
import workbench as wb
from widgets import Bench
from workbench.steps import finetune

base = wb.load(device="cpu")
tickets = wb.read_task("../data/tickets")
task = tickets.model_copy(update=dict(train=tickets.train[:{8 * STEPS}], calibration=tickets.calibration[:4]))
step = finetune.LoRA(learning_rate=1e-5)
bench = Bench(base, task)
bench
"""
MEASURE = f"""
import json, os, time
import psutil
from widgets.tools.training import Training

panel = bench.panel("finetune")
panel.set(step)
draw, drawing = Training.running, []

def timed(self, job):
    started = time.perf_counter()
    draw(self, job)
    drawing.append(time.perf_counter() - started)

def elsewhere():
    found = [each.info["cpu_times"] for each in psutil.process_iter(["cpu_times"]) if each.pid != os.getpid()]
    return sum(each.user + each.system for each in found if each)

Training.running = timed
rounds = dict(drawn=[], alone=[])
for number in range({ROUNDS} + 1):
    for way in ("drawn", "alone") if number % 2 else ("alone", "drawn"):
        drawing.clear()
        started, before = time.perf_counter(), elsewhere()
        if way == "drawn":
            panel.apply()
        else:
            bench.submit("alone", lambda progress: bench.add(base.apply(step, task, progress)), key=str(number))
        assert bench.wait(300)
        taken = time.perf_counter() - started
        if number:
            other = elsewhere() - before
            rounds[way].append(dict(seconds=taken, drawing=sum(drawing), frames=len(drawing), elsewhere=other))
        bench.remove([each for each in bench.variants if each != base.name][-1])
print("RESULT", json.dumps(rounds))
"""
LONG = "panel.set(finetune.LoRA(learning_rate=1e-5, epochs=50.0))"


def main() -> None:
    """Open a notebook, measure the training in the kernel and the clicks in the page."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = workspace(Path(place))
        write_notebook(folder / "notebooks" / "watch.ipynb", SETUP, MEASURE, LONG)
        with lab(folder) as address:
            opened = playwright.chromium.launch(executable_path=chromium.find(), args=list(CHROMIUM_FLAGS))
            page = open_notebook(opened.new_context(viewport={"width": 1280, "height": 1600}), address, "watch.ipynb")
            run_all(page, 1800)
            printed = page.evaluate(
                """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter((c) => c.type === "code")
                  .flatMap((c) => c.toJSON().outputs).map((o) => [o.text ?? ""].flat().join("")).join("")"""
            )
            rounds = json.loads(printed.split("RESULT", 1)[1])
            panel = tab(page, "Fine-tune")
            panel.get_by_role("button", name="Apply").click()
            panel.get_by_role("button", name="Pause", disabled=False).wait_for(timeout=120_000)
            page.wait_for_timeout(5000)
            waits = []
            for _ in range(CLICKS):
                for name in ("Pause", "Resume"):
                    button = panel.get_by_role("button", name=name).element_handle()
                    waits.append(page.evaluate(CLICK_TO_CHANGE, [button, button]))
                    page.wait_for_timeout(1500)  # into the next step
            panel.get_by_role("button", name="Cancel").click()
            opened.close()
    seconds = {way: [each["seconds"] for each in found] for way, found in rounds.items()}
    ratio = paired_ratio(seconds["drawn"], seconds["alone"])
    total = sum(seconds["drawn"])
    other = {way: sum(each["elsewhere"] for each in found) / sum(seconds[way]) for way, found in rounds.items()}
    write_result(
        "training_ui",
        {
            "rounds": {
                way: [{key: round(value, 3) for key, value in each.items()} for each in found]
                for way, found in rounds.items()
            },
            "drawn over alone": [round(each, 4) for each in (ratio.value, ratio.low, ratio.high)],
            "share of the training's time spent on drawing": round(
                sum(each["drawing"] for each in rounds["drawn"]) / total, 5
            ),
            "share of one core that browser and server take": {way: round(each, 5) for way, each in other.items()},
            "milliseconds from click to changed button": {
                "median": round(statistics.median(waits), 1),
                "longest": round(max(waits), 1),
                "all": [round(each, 1) for each in waits],
            },
        },
    )


if __name__ == "__main__":
    main()
