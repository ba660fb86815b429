"""How often the right document is found: by words, by meaning, by both; and whether documents have changed."""

from widgets.parts import html, ui
from widgets.parts.message import Message
from widgets.tool import Host, Tool
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.retrieval.ranking import Method
from workbench.retrieval.recall import Found, find
from workbench.step import Step
from workbench.steps.retrieve import Lookup, Retrieve
from workbench.tasks.task import Task

METHODS: tuple[Method, ...] = ("bm25", "dense", "hybrid")
NAMED = 5  # changed documents


class Recall(Tool):
    """Two buttons and a table.

    Attributes:
        results: by method, the last measured.
        widget: what is shown.
    """

    order = 5

    def __init__(self, panel: Host) -> None:
        super().__init__(panel)
        self.results: dict[str, Found] = {}
        self.button = ui.Button(
            description="Measure retrieval",
            tooltip="How often the document that a test question names is found, with each method",
        )
        self.check = ui.Button(
            description="Check documents", tooltip="Whether they are still what the variants of this bench look up"
        )
        self.message, self.table = Message(self.bench), ui.HTML()
        head = ui.HBox([self.button, self.check])
        head.add_class("wb-footer")
        self.widget = ui.VBox([head, self.message, self.table])
        self.widget.add_class("wb-section")
        self.button.on_click(lambda _: self.measure())
        self.check.on_click(lambda _: self.find_changes())

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether a step looks documents up."""
        return issubclass(kind, Retrieve)

    @property
    def static(self) -> str:
        """What was measured, for a page without a kernel."""
        return self.table.value

    def measure(self) -> None:
        """Queue the three measurements."""
        with self.message.refusals():
            step, variant, task = self.panel.step, self.panel.variant, self.bench.task
            if not isinstance(task, Task):
                raise InvalidInput(f"There are no questions to measure with. {html.NO_TASK}")

            def work(progress: Progress) -> str:
                by_words = isinstance(step, Retrieve) and step.method == "bm25"  # its index has no vectors
                methods: tuple[Method, ...] = ("bm25",) if by_words else METHODS
                made = variant.apply(step, task, progress)
                lookup = made.stages[-1]
                assert isinstance(lookup, Lookup)
                store = lookup.store()
                self.results = {method: find(store, task.test, method, progress) for method in methods}
                with self.bench.lock:
                    self.table.value = html.found(self.results.values())
                count = next(iter(self.results.values())).reciprocal_rank.n
                return f"Measured on the {count} of {len(task.test)} test questions that name an indexed document."

            self.message.submit("Measuring retrieval", work)

    def find_changes(self) -> None:
        """Queue a look at the documents of every variant."""
        with self.message.refusals():
            self.message.submit("Checking documents", lambda _: self._changes())

    def _changes(self) -> str:
        said = [
            _difference(name, stage)
            for name, variant in self.bench.variants.items()
            for stage in variant.stages
            if isinstance(stage, Lookup)
        ]
        if not said:
            raise InvalidInput("No variant looks anything up yet: Apply makes one.")
        return " ".join(said)


def _difference(name: str, lookup: Lookup) -> str:
    try:
        changed = lookup.stale()
    except WorkbenchError as error:
        return f"'{name}': {error}"
    if not changed:
        return f"'{name}': its documents are as they were indexed."
    named = ", ".join(changed[:NAMED]) + (", ..." if changed[NAMED:] else "")
    return f"'{name}': {len(changed)} of its documents changed since they were indexed ({named}): apply Retrieve again."
