"""What the tests of the bench share: what is on screen, and a worker that is held inside a job."""

import threading
from collections.abc import Iterator

import ipywidgets as ipw

from widgets import Bench, Panel
from widgets.parts.figure import Plot
from workbench.core.progress import Progress
from workbench.step import Step

TIMEOUT = 60


def everything(widget: ipw.Widget) -> Iterator[ipw.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def html(bench: Bench) -> str:
    """All HTML that is on screen, and what the static form says."""
    shown = [each.value for each in everything(bench.widget) if isinstance(each, ipw.HTML)]
    bundle = bench._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    return "".join([*shown, data["text/html"]])


class Gate:
    """Holds the worker inside a job until it is opened."""

    def __init__(self, bench: Bench) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.job = bench.submit("Gate", self.work)
        assert self.entered.wait(TIMEOUT)

    def work(self, progress: Progress) -> None:
        self.entered.set()
        while not self.opened.wait(0.01):
            progress.check()


def turn(panel: Panel, step: Step) -> None:
    """Set the panel and wait until everything has followed."""
    panel.set(step)
    assert panel.bench.wait(TIMEOUT)


def click(plot: Plot, trace: int, row: int, column: int) -> None:
    """As a page tells of it."""
    plot._handle_custom_msg({"cell": [trace, row, column]}, [])
