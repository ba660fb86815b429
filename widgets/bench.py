"""The whole workbench in one output cell."""

import weakref
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from widgets import record
from widgets.panel import Panel
from widgets.panes.chat import Chat
from widgets.panes.compare import Compare
from widgets.panes.data import Data
from widgets.panes.listing import Listing
from widgets.panes.models import Models
from widgets.panes.restore import Restore
from widgets.panes.search import Search
from widgets.panes.serve import Serve
from widgets.parts import html, ui
from widgets.parts.style import close_tree, framed
from widgets.session import Session
from workbench.core import files
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.recipe import Recipe
from workbench.step import Step
from workbench.steps import families
from workbench.tasks.task import Task, Text
from workbench.variant import Variant, load

_last: "weakref.ref[Bench] | None" = None  # running a bench's cell again must not leave the old one behind


class Bench(Session):
    """Variants on the left; on the right a tab for every step family, the chat and the comparison.

    A kernel has one bench: making another closes the one before.

    Args:
        base: the variant to start from.
        task: what steps calibrate on and comparisons measure.

    Example:
        >>> bench = Bench(workbench.load(), workbench.read_task("data/tickets"))
        >>> bench
    """

    def __init__(self, base: Variant, task: Task | Text | None = None) -> None:
        global _last
        if _last and (old := _last()):
            old.close()
        super().__init__(base, task)
        self.title = ui.HTML(html.header(self.base, self.task))
        self.status = ui.HTML(html.status(()))
        self.stop = ui.Button(description="Cancel", tooltip="Cancel the running job; nothing is changed", disabled=True)
        self.present = ui.ToggleButton(
            description="Present", tooltip="Large type, one panel, and a guess before every result: for a projector"
        )
        self.present.observe(lambda change: self._present(change["new"]), "value")
        self.stop.on_click(lambda _: self.cancel())
        self.listing = Listing(self)
        self._panels: dict[str, Panel] = {}
        self._places = {family: ui.VBox() for family in families()}
        for place in self._places.values():
            place.add_class("wb-place")
        self.chat = Chat(self)
        self.compare = Compare(self)
        self.search = Search(self)
        self.serve = Serve(self)
        self.models, self.data = Models(self), Data(self)
        self.restore = Restore(self)
        self.warning = ui.HTML()
        loads = ui.VBox([self.models.widget, self.data.widget])
        loads.add_class("wb-panel")
        self._tabs = {
            "Load": loads,
            **{html.family(name): place for name, place in self._places.items()},
            **{"Chat": self.chat.widget, "Compare": self.compare.widget},
            **{"Search": self.search.widget, "Serve": self.serve.widget},
        }
        self.tabs = ipw.Tab([*self._tabs.values()], titles=[*self._tabs], selected_index=1)
        self.tabs.add_class("wb-tabs")
        self._open_family = next(iter(self._places))
        self._opened(self.tabs.selected_index)
        self.tabs.observe(lambda change: self._opened(change["new"]), "selected_index")
        self.widget = framed(self._card())
        _last = weakref.ref(self)

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None, progress: Progress | None = None) -> "Bench":
        """A bench that was saved, or one of `runs/benches`; its variants are made again by the worker.

        Args:
            path: of its folder.
            device: where it runs; by default where it ran.
            progress: told of what takes long.

        Raises:
            InvalidInput: there is none, it is damaged, or a newer workbench wrote it.
            NotAvailable: the model that it was made from is no longer there.
        """
        folder = files.home(path)
        kept, task = record.read(folder), record.read_task(folder)
        first = kept.variants[0]
        own = next((each for each in kept.weights if each.recipe == first.recipe and each.serves(first)), None)
        source = folder / own.folder if own else first.source
        base = load(source, device=device or kept.device, dtype=kept.dtype, progress=progress)
        if own is None:
            base = first.steps.apply(base, task, progress)
        bench = cls(base.under(first.name), task)
        bench.restore.open(folder, kept)
        return bench

    @property
    def recipe(self) -> Recipe:
        """What the panel opened last is set to: its target's recipe and its step.

        Raises:
            InvalidInput: a knob is out of range.
        """
        return self.panel(self._open_family).recipe

    def panel(self, family: str) -> Panel:
        """The panel of a step family, built when it is first looked at: a page waits for every control there is.

        Raises:
            InvalidInput: there is no such family.
        """
        with self.lock:
            if family not in self._places:
                raise InvalidInput(
                    f"There is no step family '{family}' in this bench, which has {', '.join(self._places)}: run its "
                    "cell again if it is a new one."
                )
            if family not in self._panels:
                panel = self._panels[family] = Panel(self, family, visible=False)
                panel.recall(self.knobs.pop(family, {}))
                self._places[family].children = [panel.widget]
            return self._panels[family]

    def recall(self, knobs: dict[str, dict[str, Any]]) -> None:
        """Let the panels stand as they stood when a record was written, now or when they are opened."""
        self.knobs = dict(knobs)
        for family, panel in self._panels.items():
            panel.recall(self.knobs.pop(family, {}))

    def turn_to(self, step: Step) -> None:
        """Set the panel of a step's family to it, and open its tab."""
        self.panel(step.family())
        super().turn_to(step)
        self.open(html.family(step.family()))

    def open(self, title: str) -> None:
        """Show a tab."""
        self.tabs.selected_index = list(self._tabs).index(title)

    def use(self, task: Task | Text | None) -> None:
        """Calibrate and measure on another task from now on; what was measured on the one before stays on screen."""
        super().use(task)
        self.title.value = html.header(self.base, task)

    def warn(self, sentence: str) -> None:
        """Say something that belongs to no button."""
        self.warning.value = html.message(sentence, "error")

    def close(self) -> None:
        """Stop the worker, take everything off the page and let go of the variants."""
        with self.lock:
            if self.closed:
                return
            super().close()
            self.serve.close()
            self.restore.close()
            for panel in self.panels:
                panel.close()
            self.panels.clear()
            close_tree(self.widget)

    def _card(self) -> ipw.Box:
        head = ui.HBox([self.title, self.present, self.status, self.stop])
        head.add_class("wb-head")
        main = ui.VBox([self.tabs])
        main.add_class("wb-main")
        body = ui.HBox([self.listing.widget, main])
        body.add_class("wb-body")
        self.card = ui.VBox([head, self.warning, self.restore.widget, body])
        self.card.add_class("wb-card")
        return self.card

    def _present(self, on: bool) -> None:
        (self.card.add_class if on else self.card.remove_class)("wb-present")
        with self.lock:
            self.compare.present(on)

    def _opened(self, index: int | None) -> None:
        title = list(self._tabs)[index] if index is not None else ""
        family = next((each for each in self._places if html.family(each) == title), None)
        with self.lock:
            if family is not None:
                self.panel(family)
                self._open_family = family
            for name, panel in self._panels.items():
                panel.show(name == family)
            self.compare.visible = title == "Compare"
            self.compare.show_estimate()

    def _show_status(self) -> None:
        jobs = self.jobs
        self.status.value = html.status(jobs)
        if self.stop.disabled == bool(jobs):
            self.stop.disabled = not jobs
        if not jobs:
            self.listing.show_memory()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = self.widget._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = repr(self)
        data["text/html"] = "".join(
            [
                html.static(self.variants.values(), self.base),
                *(panel.static for panel in list(self._panels.values())),
                self.comparison._repr_html_() if self.comparison else "",
            ]
        )
        return bundle

    def __repr__(self) -> str:
        return f"<Bench: {', '.join(self.variants)}>"
