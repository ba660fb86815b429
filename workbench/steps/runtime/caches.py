"""Nothing computed twice: beginnings and whole answers that were asked for before."""

from typing import ClassVar

from pydantic import Field

from workbench.answering.answers import Staged
from workbench.answering.request import Generation, Prepared
from workbench.answering.responses import entry, key_of
from workbench.answering.stage import Stage
from workbench.answering.store import Bounds, Store, store
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.runtime.decoding import Decoding
from workbench.runtime.engine import Eager
from workbench.runtime.trial import way_of
from workbench.step import RequestStep, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

MEGA = 1_000_000


class PrefixCache(Step):
    """Keeps what was read of earlier prompts and answers, and reads only what comes after.

    System prompts, examples, documents that stand first, and the earlier turns of a chat are read once: the first token
    of the next answer comes as soon as if only the rest had been asked. The tokens after it come no sooner, and prompts
    that differ from their first words on gain nothing, such as those whose looked-up documents stand before the same
    question. The longest known beginning counts, token by token; what was used least recently goes first. A comparison
    that asks one question twice times the second one warm. Whoever can measure the time to the first token can tell
    what others have asked.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2311.04934"
    caveat: ClassVar[str] = "no token comes faster, only the first one, and only where prompts begin alike"
    megabytes: int = Field(
        default=256, ge=1, le=1_000_000, description="Most memory for keys and values; KVCache makes more fit in."
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Change the engine; every weight is shared, and what is kept goes when the variant is closed.

        Raises:
            InvalidInput: the model's beginnings cannot be handed on, or it is not run in a plain way.
        """
        if not isinstance(variant.engine, Eager):
            raise InvalidInput(f"'{variant.name}' is run by {variant.engine!r}: apply {self.label} to its parent.")
        if not way_of(variant.model).prefix:
            raise InvalidInput(f"'{variant.name}' cannot go on from a part of what it read: {self.label} has no use.")
        engine = variant.engine.model_copy(update={"prefix_bytes": self.megabytes * MEGA})
        return variant.derive(self, sharing.share(variant.model), engine=engine)


class ResponseCache(RequestStep):
    """Gives an answer again that was given before, when everything that shaped it is the same.

    That is the weights, every token of the prompt, how tokens are chosen and their seed, the steps on the way in and
    out, what documents were indexed, the engine, and whose request it is. So the answer is what the model would say,
    within a millisecond, and it is marked. It helps where the very same is asked again, and never makes a new answer
    faster; one word more is another question. Answers lie in a file that only you can read, shared by your kernels.
    Timings never use them: they time the model.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1803.02329"
    caveat: ClassVar[str] = "not faster: the model itself was timed; only what was asked before is answered at once"
    folded: ClassVar[tuple[str, ...]] = ("entries", "megabytes", "on_disk")
    hours: float = Field(default=168.0, gt=0.0, le=100_000.0, description="How long an answer may be given again.")
    entries: int = Field(default=10_000, ge=1, le=1_000_000, description="Most answers; the least used goes first.")
    megabytes: int = Field(default=64, ge=1, le=100_000, description="Most room for all of them.")
    on_disk: bool = Field(default=True, description="Keep them for the next kernel, too, in your private cache folder.")

    @property
    def bounds(self) -> Bounds:
        """What is kept, and how long."""
        return Bounds(3600 * self.hours, self.entries, self.megabytes * MEGA)

    @property
    def store(self) -> Store:
        """Where the answers are."""
        return store(self.on_disk)

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Share every weight; answers are looked up first.

        Raises:
            InvalidInput: the variant's answers are kept already.
        """
        self.check(variant)
        return super().apply(variant, task, progress)

    def check(self, variant: Variant) -> None:
        """Raise `InvalidInput` where another stage keeps the variant's answers."""
        if any(type(each).known is not Stage.known for each in variant.stages):
            raise InvalidInput(f"'{variant.name}' keeps its answers already: apply {self.label} to its parent.")

    def known(self, variant: Staged, asked: Prepared, settings: Decoding) -> Generation | None:
        """What was answered when exactly the same was asked."""
        found = self.store.find(key_of(variant, asked, settings), self.bounds.seconds)
        return None if found is None else self.store.again(found, "exact", "the same was asked")

    def learn(self, variant: Staged, asked: Prepared, settings: Decoding, answer: Generation) -> None:
        """Keep the answer."""
        self.store.learn(entry(key_of(variant, asked, settings), answer), self.bounds)
