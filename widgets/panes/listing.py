"""The list of variants: choose, rename, save, deploy, remove."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import ipywidgets as ipw

from widgets.parts import html
from widgets.parts.style import close_tree
from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress
from workbench.layers.calibration import kept_bytes
from workbench.models import sharing
from workbench.serving.launch import TARGETS
from workbench.variant import Variant

if TYPE_CHECKING:
    from widgets.session import Session


class Listing:
    """A row for every variant.

    Attributes:
        rows: by variant name.
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.rows: dict[str, Row] = {}
        self.message = ipw.HTML()
        self.memory = ipw.HTML()
        self._place = ipw.VBox()
        head = ipw.HTML("<h3>Variants</h3>" + html.help_line("Tick those to talk to and to compare."))
        self.widget = ipw.VBox([head, self._place, self.memory, self.message])
        self.widget.add_class("wb-list")
        self.draw()
        bench.watch(self.draw)

    def draw(self) -> None:
        """Make the rows agree with the bench, keeping those that still hold."""
        variants = self.bench.respondents
        gone = [name for name, row in self.rows.items() if variants.get(name) is not row.variant]
        closing = [self.rows.pop(name) for name in gone]
        for name in variants:
            if name not in self.rows:
                self.rows[name] = Row(self, name)
            self.rows[name].draw()
        wanted = tuple(self.rows[name].widget for name in variants)
        if self._place.children != wanted:
            self._place.children = wanted
        for row in closing:
            row.variant = None
            close_tree(row.widget)
        self.show_memory()

    def show_memory(self) -> None:
        """Say what is in memory: the weights of all variants, each once, and what calibration keeps."""
        weights = sharing.total_bytes(each.model for each in self.bench.variants.values() if not each.closed)
        said = html.memory(weights, kept_bytes())
        if self.memory.value != said:
            self.memory.value = said

    def say(self, html: str) -> None:
        """Show news under the list."""
        self.message.value = html


class Row:
    """One variant: a tick, its facts, and a folded strip with what can be done with it."""

    def __init__(self, listing: Listing, name: str) -> None:
        self._listing = listing
        self.name = name
        self.variant = listing.bench[name]
        is_base = self.variant == listing.bench.base
        self.tick = ipw.Checkbox(description=name, indent=False, tooltip=f"Use {name} in chat and comparison")
        self.facts = ipw.HTML()
        self.menu = ipw.Button(icon="ellipsis-h", tooltip=f"Rename, save or remove {name}")
        self.menu.add_class("wb-icon")
        self.typed = ipw.Text(value=name, description="Name", tooltip=f"New name, or export folder, for {name}")
        self.rename = ipw.Button(description="Rename", tooltip=f"Rename {name}")
        here = isinstance(self.variant, Variant)
        self.save = ipw.Button(
            description="Save",
            tooltip=f"Save {name} to a folder of this name under exports/" if here else "Its weights are elsewhere",
            disabled=not here,
        )
        self.target = ipw.Dropdown(
            options=TARGETS, description="For", tooltip=f"What shall run {name} elsewhere", disabled=not here
        )
        self.deploy = ipw.Button(
            description="Deploy",
            tooltip=f"Write {name} to a folder NAME-TARGET under exports/ that runs elsewhere, and try it"
            if here
            else "Its weights are elsewhere",
            disabled=not here,
        )
        self.remove = ipw.Button(
            description="Remove",
            tooltip="The baseline stays" if is_base else f"Take {name} off the list",
            disabled=is_base,
        )
        self.strip = ipw.HBox([self.typed, self.rename, self.save, self.remove, self.target, self.deploy])
        self.strip.add_class("wb-edit")
        self.strip.layout.display = "none"
        self.widget = ipw.VBox([self.tick, self.menu, self.facts, self.strip])
        self.widget.add_class("wb-row")
        self.widget.layout.border_left = f"4px solid {listing.bench.colour(name)}"
        self.tick.observe(self._ticked, "value")
        self.menu.on_click(lambda _: self._fold())
        self.rename.on_click(lambda _: self._try(lambda: listing.bench.rename(self.name, self.typed.value)))
        self.remove.on_click(lambda _: self._try(lambda: listing.bench.remove(self.name)))
        self.save.on_click(lambda _: self._try(self._save))
        self.deploy.on_click(lambda _: self._try(self._deploy))

    def draw(self) -> None:
        """Follow the bench: chosen or not, and sizes, which change with the other variants."""
        bench = self._listing.bench
        chosen = self.name in bench.chosen
        if self.tick.value != chosen:
            self.tick.value = chosen
        said = html.respondent_line(bench[self.name], bench[self.name] == bench.base)
        if self.facts.value != said:
            self.facts.value = said

    def _ticked(self, change: dict) -> None:
        bench = self._listing.bench
        if self.name in bench.respondents and (self.name in bench.chosen) != change["new"]:
            bench.choose(self.name, change["new"])

    def _fold(self) -> None:
        shown = self.strip.layout.display != "none"
        self.strip.layout.display = "none" if shown else None

    def _try(self, action) -> None:
        self._listing.say("")
        try:
            action()
        except WorkbenchError as error:
            self._listing.say(html.message(str(error), "error"))

    def _save(self) -> None:
        bench, name, typed = self._listing.bench, self.name, self.typed.value
        self._submit(f"Save {name}", lambda _: bench.export(name, typed), f"save {typed}")

    def _deploy(self) -> None:
        bench, name, typed, target = self._listing.bench, self.name, self.typed.value, self.target.value
        self._submit(
            f"Deploy {name}", lambda progress: bench.deploy(name, typed, target, progress), f"deploy {typed} {target}"
        )

    def _submit(self, label: str, work: Callable[[Progress], str], key: str) -> None:
        show = self._listing.say
        self._listing.bench.submit(label, work, lambda job: show(html.job_message(job, str(job.result))), key=key)
