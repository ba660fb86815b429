"""Answers to questions that were asked before in other words."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from workbench.answering.answers import Staged
from workbench.answering.request import BREAK, Generation, Prepared
from workbench.answering.responses import entry, key_of
from workbench.answering.stage import Stage
from workbench.core.progress import Progress
from workbench.retrieval import paraphrase
from workbench.retrieval.embedding import Encoder, Vectors, encoder
from workbench.retrieval.guards import differs
from workbench.runtime.decoding import Decoding
from workbench.steps.runtime.caches import ResponseCache
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

SLOT = "\0"  # stands for the last question where only what is around it counts


class Meaning(Stage):
    """Looks for an answer to the same question, then for one to a question that means the same.

    Attributes:
        step: what is kept, and how long.
        least: likeness from which on two questions are taken for one; None takes the very same only.
    """

    step: "SemanticCache"
    least: float | None = None

    @property
    def encoder(self) -> Encoder:
        """What makes vectors of questions."""
        return encoder(self.step.encoder) if self.step.encoder else encoder()

    def known(self, variant: Staged, asked: Prepared, settings: Decoding) -> Generation | None:
        """What was answered to the same, or to the nearest question that no guard tells apart."""
        if exact := self.step.known(variant, asked, settings):
            return exact
        around = self._around(variant, asked, settings)
        if around is None or self.least is None:
            return None
        scope, question, vector = around
        store = self.step.store
        others = store.near(scope, self.step.bounds.seconds)
        likeness = [float(np.frombuffer(each.vector, np.float32) @ vector) for each in others]
        for at in np.argsort(likeness)[::-1]:
            if likeness[at] < self.least:
                break
            if not differs(others[at].question, question):
                why = f'"{others[at].question}" (likeness {likeness[at]:.3f}) was asked'
                return store.again(others[at], "meaning", why)
        return None

    def learn(self, variant: Staged, asked: Prepared, settings: Decoding, answer: Generation) -> None:
        """Keep the answer, and what was asked."""
        key, around = key_of(variant, asked, settings), self._around(variant, asked, settings)
        scope, question, vector = around or ("", "", np.empty(0, np.float32))
        self.step.store.learn(entry(key, answer, scope, question, vector.tobytes()), self.step.bounds)

    def _around(self, variant: Staged, asked: Prepared, settings: Decoding) -> tuple[str, str, Vectors] | None:
        """Hash of all that shapes the answer but the last question's wording, that wording, and its vector.

        The paragraphs before the question in the same message, documents, and everything that was said before must be
        the very same. None where no threshold is known, or the wording cannot be told from what is around it.
        """
        request, query = asked.request, asked.request.query
        before, found, last = query.rpartition(BREAK)
        if self.least is None or not last.strip() or request.question.count(query) != 1 or self.encoder.cut(last):
            return None
        emptied = request.question.replace(query, f"{before}{found}{SLOT}")
        scope = key_of(variant, asked, settings, variant.tokens(request.asking(emptied)))
        return scope, last, self.encoder.vectors([last])[0]


class SemanticCache(ResponseCache):
    """Gives an answer again when a question means the same as one asked before. Can be wrong: read on.

    Vectors hardly tell "turn it on" from "turn it off", so guards first compare numbers, dates, names, negations,
    opposites and what is asked for, and everything before the last question must be the very same. How near is near
    enough is computed from pairs of your own questions, labelled as having the same answer or not: the loosest
    threshold whose wrong answers surely stay within the budget you set. Without pairs, or with too few, only the very
    same question is answered from the cache. The budget holds for pairs like yours, one at a time; the more is kept,
    the more chances there are to be wrong. The guards know English. Where a wrong answer does harm, do without.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2110.01052"
    instant: ClassVar[bool] = False
    folded: ClassVar[tuple[str, ...]] = (*ResponseCache.folded, "encoder")
    pairs: str = Field(
        default="",
        max_length=4_000,
        description=(
            "A JSONL, CSV or Parquet file of labelled pairs of questions: a, b, and same, which is true or false. "
            "Empty: only the very same question counts."
        ),
    )
    budget: float = Field(
        default=0.02, gt=0.0, le=0.5, description="Share of different questions that may be answered wrongly, at most."
    )
    encoder: str = Field(
        default="", max_length=4_000, description="A sentence encoder for the meaning; empty takes the embedded one."
    )

    def threshold(self, progress: Progress | None = None) -> paraphrase.Threshold:
        """What the pairs support.

        Raises:
            InvalidInput: they cannot be read.
        """
        found = paraphrase.read_pairs(self.pairs)
        likeness = paraphrase.likeness(found, Meaning(step=self).encoder, progress)
        return paraphrase.threshold(likeness, [each.same for each in found], self.budget)

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Share every weight; answers are looked up first.

        Raises:
            InvalidInput: the variant's answers are kept already, or the pairs cannot be read.
        """
        self.check(variant)
        found = self.threshold(progress) if self.pairs else None
        note = str(found) if found else "No pairs were given."
        if found is None or found.value is None:
            note += " Only the very same question is answered from the cache."
        stage = Meaning(step=self, least=found.value if found else None)
        return variant.derive(self, stage=stage, notes=[f"{self.label}: {note}"])


Meaning.model_rebuild()
