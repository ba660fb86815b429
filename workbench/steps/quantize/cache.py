"""The key-value cache in fewer bits."""

from typing import ClassVar, Literal

from pydantic import Field

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.engine import Eager
from workbench.step import Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


class KVCache(Step):
    """Keeps the keys and values of the tokens already read in 8 or 4 bits.

    They grow with every token and outweigh the weights on long contexts or many requests at once. Each token is rounded
    as it arrives, in groups of 32 numbers with a range of their own; 8 bits hardly change an answer, 4 bits do. The
    weights are shared with the parent. All of the cache is unpacked again for every token, so this saves memory, not
    time. Layers with a sliding window keep theirs as it is.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.02750"
    caveat: ClassVar[str] = "not faster: the whole cache is unpacked for every token; it is smaller on long contexts"
    bits: Literal[8, 4] = Field(default=8, description="Bits a number; each group of 32 adds another 32.")

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Change the engine only.

        Raises:
            InvalidInput: no layer of the model keeps all its keys and values, or it is not run in the plain way.
        """
        if not isinstance(variant.engine, Eager):
            raise InvalidInput(f"'{variant.name}' is run by {variant.engine!r}: apply {self.label} to its parent.")
        engine = variant.engine.model_copy(update={"cache_bits": self.bits})
        if not Eager(cache_bits=self.bits).packs(variant.model):
            raise InvalidInput(f"'{variant.name}' keeps no growing key-value cache that {self.label} could pack.")
        if not engine.packs(variant.model):
            raise InvalidInput(
                f"'{variant.name}' is run by {variant.engine!r}, which keeps keys and values as they are computed: "
                f"apply {self.label} to its parent."
            )
        return variant.derive(self, engine=engine)
