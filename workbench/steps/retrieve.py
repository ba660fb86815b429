"""Retrieval: the model is shown what it needs to know."""

import hashlib
import re
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from workbench.answering.request import Generation, Request, shown_id, slot
from workbench.answering.speaker import Speaker
from workbench.answering.stage import Stage
from workbench.core.errors import InvalidInput
from workbench.core.files import home, is_kind
from workbench.core.progress import Progress
from workbench.models.tokens import encode_text
from workbench.retrieval.documents import read_documents
from workbench.retrieval.embedding import encoder
from workbench.retrieval.index import STORES
from workbench.retrieval.ranking import Method, Store
from workbench.step import RequestStep
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

CITED = re.compile(r"\[([^\[\]]{1,200})\]")
CITE = "Name the documents that you used by their id, in square brackets."


class Lookup(Stage):
    """Puts the passages of an index before the question.

    Attributes:
        step: how they are looked up.
        source: where the documents are.
        state: of the index when it was made; answers may differ once that is another.
    """

    step: "Retrieve"
    source: str
    state: str = ""

    def store(self) -> Store:
        """Where the passages are."""
        step = self.step
        if step.store not in STORES:
            raise InvalidInput(f"There is no store '{step.store[:60]}': add it to workbench.retrieval.STORES.")
        facts = [self.source, step.words, step.overlap, step.encoder, step.method == "bm25"]
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        needed = None if step.method == "bm25" else encoder(step.encoder) if step.encoder else encoder()
        return STORES[step.store](name, step.words, step.overlap, needed)

    @property
    def reads(self) -> str:
        """State of the index as it is now."""
        return self.store().state

    def update(self, progress: Progress | None = None) -> tuple[Store, list[str]]:
        """The store with the documents as they are now, and what could not be read."""
        library, store = read_documents(self.source), self.store()
        store.update(library.documents, progress)
        return store, library.refused

    def stale(self) -> list[str]:
        """Ids of documents that are no longer what the store holds."""
        return self.store().stale(read_documents(self.source).documents)

    def rewrite(self, request: Request, variant: Speaker) -> Request:
        """The request with its passages, as many of the best as the budget holds."""
        step, notes, store = self.step, [], self.store()
        if not step.top_k:
            return request
        if not store.state:  # a cache that was emptied, or another machine's
            store, _ = self.update()
        if store.state != self.state:
            notes.append("Retrieve: the documents have changed since this variant was made.")
        if store.encoder and store.encoder.cut(request.query):
            notes.append(f"Retrieve: of the question, the first {store.encoder.most_tokens} tokens were looked up.")
        kept, left = [], step.budget
        found = store.search(request.query, step.top_k, step.method)
        for each in found:
            left -= len(encode_text(variant.tokenizer, slot(each)))
            if left < 0:
                break
            kept.append(each)
        if found and not kept:
            notes.append(
                f"Retrieve: the best passage is longer than the budget of {step.budget} tokens: none is shown."
            )
        asked = request.asking(f"{request.question}\n\n{CITE}") if step.cite and kept else request
        return asked.but(passages=(*request.passages, *kept), notes=(*request.notes, *notes))

    def finish(self, answers: list[Generation]) -> list[Generation]:
        """Each with a note on what it cites, if it was asked to."""
        return [each.but(notes=(*each.notes, _cited(each))) if self._asked(each) else each for each in answers]

    def _asked(self, answer: Generation) -> bool:
        """Whether the model was asked to cite."""
        return self.step.cite and bool(answer.passages)


def _cited(answer: Generation) -> str:
    shown = {shown_id(each) for each in answer.passages}
    named = dict.fromkeys(
        each for cited in CITED.findall(answer.text) for each in re.split(r"\s*[,;]\s*", cited.strip())
    )
    unknown = [each for each in named if each not in shown]
    if not named:
        return "Retrieve: the answer cites no document."
    if unknown:
        return f"Retrieve: the answer cites [{unknown[0][:60]}], which it was not shown."
    return f"Retrieve: the answer cites {', '.join(named)}."


class Retrieve(RequestStep):
    """Looks up the passages of your documents that fit the question, and puts them before it.

    A small model with the right page beats a large one that guesses. The passages are read with every request, so the
    first token comes later; a wrong passage misleads. What stands in a document is data to be read, never an order.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2005.11401"
    instant: ClassVar[bool] = False
    folded: ClassVar[tuple[str, ...]] = ("words", "overlap", "encoder", "store", "cite")
    documents: str = Field(
        default="",
        max_length=4_000,
        description="A folder, a file, or a data set's id; empty takes those of the task. PDF and HTML, too.",
    )
    method: Method = Field(default="hybrid", description="By words, by meaning, or by both ranks together.")
    top_k: int = Field(default=3, ge=0, le=100, description="Passages put before a question; 0 changes nothing.")
    budget: int = Field(default=1024, ge=16, le=1_000_000, description="Tokens that all of them may take.")
    words: int = Field(default=120, ge=10, le=2_000, description="Most words in a passage.")
    overlap: int = Field(default=20, ge=0, le=1_000, description="Words that a passage shares with the one before.")
    encoder: str = Field(
        default="", max_length=4_000, description="A sentence encoder for the meaning; empty takes the embedded one."
    )
    store: str = Field(
        default="sqlite", max_length=100, description="Where passages are kept: sqlite, in a file, or a store of yours."
    )
    cite: bool = Field(default=False, description="Ask the model to name the documents it used.")

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        """Whether the documents are those of the task."""
        return not self.documents

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Index the documents, unless they are; every weight is shared."""
        source = self.documents or (task.documents if isinstance(task, Task) else "")
        if not source:
            raise InvalidInput("No documents are named: give Retrieve a folder, a file or a data set's id.")
        place = home(source)
        lookup = Lookup(step=self, source=str(place.resolve()) if is_kind(place, Path.exists) else source)
        store, refused = lookup.update(progress)
        notes = [f"Retrieve: {len(store.ids())} documents, as they were when their fingerprint was {store.state}."]
        if refused:
            notes.append(f"{len(refused)} not indexed: {'; '.join(refused[:3])}{'; ...' if refused[3:] else '.'}")
        return variant.derive(self, stage=lookup.model_copy(update={"state": store.state}), notes=notes)


Lookup.model_rebuild()
