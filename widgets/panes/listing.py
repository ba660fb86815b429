"""The list of variants, by lineage: choose, sort, filter, rename, save, deploy, put away, remove."""

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widgets.parts import html, ui
from widgets.parts.page import Page
from workbench.answering.speaker import Respondent
from workbench.core.errors import WorkbenchError
from workbench.core.estimate import Estimate
from workbench.core.progress import Progress
from workbench.display import COLOURS
from workbench.layers.calibration import kept_bytes
from workbench.measurement import scales
from workbench.models import sharing
from workbench.serving.launch import TARGETS
from workbench.variant import Variant, weights

if TYPE_CHECKING:
    from widgets.session import Session


class Rows(Page):
    """What is drawn of the list; sorting and filtering are the page's own affair, and wait for no kernel."""

    _esm = Path(__file__).parents[1] / "parts" / "listing.js"


class Listing:
    """A row for every variant.

    Attributes:
        page: the rows as they are drawn.
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.message, self.memory = ui.HTML(), ui.HTML()
        self.page = Rows()
        self.page.on_msg(self._answer)
        self.widget = ui.VBox([self.page, self.memory, self.message])
        self.widget.add_class("wb-list")
        self.draw()
        bench.watch(self.draw)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """What is shown of each variant, by name."""
        return {each["name"]: each for each in json.loads(self.page.value)["rows"]}

    def draw(self) -> None:
        """Make the page agree with the bench."""
        sizes = weights()
        rows = [
            self._row(name, each, sizes.get(each, (0, 0)), self._measured(name, each))
            for name, each in self.bench.respondents.items()
        ]
        known = {key for row in rows for key in row["measured"]}
        measures = [{"key": key, "title": scales.METRICS[key][0]} for key in scales.METRICS if key in known]
        shown = json.dumps({"rows": rows, "measures": measures, "targets": TARGETS}, allow_nan=False)
        if self.page.value != shown:
            self.page.value = shown
        self.show_memory()

    def show_memory(self) -> None:
        """Say what is in memory: the weights of all variants, each once, and what calibration keeps."""
        models = {id(each.model): each.model for each in self.bench.variants.values() if not each.closed}
        said = html.memory(sharing.total_bytes(models.values()), kept_bytes())
        if self.memory.value != said:
            self.memory.value = said

    def say(self, html: str) -> None:
        """Show news under the list."""
        self.message.value = html

    def _answer(self, _: Any, said: dict[str, Any], buffers: Any) -> None:
        try:
            self.heard(said)
        finally:  # a page waits for it
            self.page.send({"number": said.get("number")})

    def heard(self, said: dict[str, Any]) -> None:
        """Do what a page asks for; what is refused is said under the list.

        Args:
            said: `do`, the `name` of a variant or the `names` of several, and what else that takes.
        """
        self.say("")
        try:
            self._do(said)
        except WorkbenchError as error:
            self.say(html.message(str(error), "error"))
            self.draw()

    def _do(self, said: dict[str, Any]) -> None:
        bench, do, names = self.bench, said.get("do"), [str(each) for each in said.get("names", ())]
        name, typed, target = (str(said.get(key, "")) for key in ("name", "typed", "target"))
        if do == "choose":
            bench.choose_all(names, bool(said.get("on")))
        elif do == "archive":
            bench.archive(*names, away=bool(said.get("on")))
        elif do == "rename":
            bench.rename(name, typed)
        elif do == "remove":
            bench.remove(name)
        elif do == "save":
            self._submit(f"Save {name}", lambda _: bench.export(name, typed), f"save {typed}")
        elif do == "deploy" and target in TARGETS:
            label, key = f"Deploy {name}", f"deploy {typed} {target}"
            self._submit(label, lambda progress: bench.deploy(name, typed, target, progress), key)

    def _submit(self, label: str, work: Callable[[Progress], str], key: str) -> None:
        self.bench.submit(label, work, lambda job: self.say(html.job_message(job, str(job.result))), key=key)

    def _measured(self, name: str, variant: Respondent) -> dict[str, Estimate]:
        """What the last comparison found of a variant, by metric; its name may be another's by now."""
        runs = self.bench.comparison.runs if self.bench.comparison else ()
        recipe = [step.to_json() for step in variant.recipe] if isinstance(variant, Variant) else []
        own = [run for run in runs if (run.source, run.recipe) == (variant.source, recipe)]
        return dict(next((run for run in own if run.variant == name), own[0]).estimates) if own else {}

    def _row(
        self, name: str, variant: Respondent, sizes: tuple[int, int], measured: dict[str, Estimate]
    ) -> dict[str, Any]:
        bench, here = self.bench, isinstance(variant, Variant)
        last = list(variant.recipe)[-1:] if here else []
        return {
            "name": name,
            "parent": bench.parent(name),
            "base": variant == bench.base,
            "here": here,
            "chosen": name in bench.chosen,
            "archived": name in bench.archived,
            "colour": bench.colour(name),
            "pattern": bench.look(name) // len(COLOURS),
            "group": last[0].label if last else variant.source if here else "Endpoints",
            "bytes": sizes[0],
            "facts": html.share(*sizes) if here else "answers elsewhere",
            "recipe": html.made_by(variant),
            "measured": {
                key: {"value": found.value if isfinite(found.value) else None, "text": scales.text(key, found)}
                for key, found in measured.items()
            },
        }
