"""What the tests of the bench share: what is on screen, and a worker that is held inside a job."""

import threading
from collections.abc import Iterator

import ipywidgets as ipw

from widgets import Bench
from workbench.core.progress import Progress

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
