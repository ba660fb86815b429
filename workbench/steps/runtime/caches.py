"""Nothing computed twice: beginnings and whole answers that were asked for before."""

from typing import ClassVar

from pydantic import Field

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.runtime.engine import Eager
from workbench.runtime.trial import way_of
from workbench.step import Step
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
