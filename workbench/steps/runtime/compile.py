"""The decode step as compiled code."""

from typing import ClassVar, Literal

from pydantic import Field

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.runtime.compiled import Compile as Engine
from workbench.runtime.compiling import SHORTEST, check_fits
from workbench.runtime.engine import Eager
from workbench.runtime.footprint import kv_bytes
from workbench.runtime.kvcache import FULL
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


class Compile(Step):
    """Compiles the reading of one further token into code for this machine, so that little is done between products.

    Run operation by operation, a model of hundreds of small operations spends much of each token on starting them, and
    writes what it computes to memory in between. Compiled once, for any prompt, sampling setting and answer, they
    become a few loops; keys and values are written in place. It pays with small models, many layers and long answers.
    It takes up to a minute or two, less a second time; the variant's note says after how many tokens it pays back. It
    does not help where reading the weights already is the bound, hardly where the blocks are ours (Llama, Mistral,
    Qwen) and start few operations as they are, nor prompts, nor several answers side by side, which are read as before.
    What cannot be compiled here, or says something else then, answers as before, and a note says why. A CPU needs a C++
    compiler (g++). Weights are shared with the parent.
    """

    paper: ClassVar[str] = "https://doi.org/10.1145/3620665.3640366"
    contends: ClassVar[bool] = True
    caveat: ClassVar[str] = (
        "not faster: reading the weights is the bound already, answers are short, or several are made side by side"
    )
    folded: ClassVar[tuple[str, ...]] = ("search",)
    how: Literal["auto", "whole", "blocks"] = Field(
        default="auto",
        description="The whole model at once; one block, whose code all share (in seconds); or the faster when tried.",
    )
    longest: int = Field(
        default=SHORTEST,
        ge=64,
        le=131072,
        description="Tokens, prompt and answer, that it is compiled for; what is longer goes on uncompiled.",
    )
    search: bool = Field(
        default=False,
        description="Also try its other settings, freezing (copies the weights) among them: three times as long.",
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Change the engine only; compiled at once.

        Raises:
            InvalidInput: it is run by another engine, or cannot be written in place.
        """
        if type(variant.engine) not in (Eager, Engine):
            raise InvalidInput(f"'{variant.name}' is run by {variant.engine!r}: apply {self.label} to its parent.")
        assert isinstance(variant.engine, Eager)
        if variant.engine.cache_bits < FULL:
            raise InvalidInput(
                f"'{variant.name}' packs its keys and values, which compiled steps cannot: apply {self.label} to a "
                "variant without KVCache."
            )
        check_fits(variant.model, variant.name)
        model = sharing.share(variant.model)  # graphs go with it when the variant is closed
        kept = variant.engine.model_dump()
        engine = Engine(**(kept | {"how": self.how, "longest": self.longest, "search": self.search}))
        engine.fitted(model, variant.tokenizer, progress)
        return variant.derive(self, model, engine=engine)

    def forecast(self, variant: Variant) -> Forecast:
        """Keys and values of the longest answer; how long it takes is only known once it is done."""
        kept = kv_bytes(variant.model) * min(self.longest, variant.context_length)
        copied = variant.total_bytes if self.search else 0
        return Forecast(owned_bytes=kept + copied, weight_bytes=variant.total_bytes, seconds=None)
