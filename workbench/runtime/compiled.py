"""Our own decode step, compiled once for each length, on keys and values that are written in place."""

from collections.abc import Sequence
from typing import Literal
from weakref import WeakKeyDictionary

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core.progress import Progress
from workbench.runtime.compiling import SHORTEST, CompiledRows, Graphs, How, compile_steps
from workbench.runtime.engine import Eager, Starts
from workbench.runtime.graphs import FLAGS, PLAIN, USUAL
from workbench.runtime.kvcache import FULL
from workbench.runtime.prefix import Prefix
from workbench.runtime.rows import Rows


class Compile(Eager):
    """The plain way, but that each further token of one answer is read by a graph compiled beforehand.

    Prompts, and several answers side by side, are read operation by operation.

    Attributes:
        how: the whole model as one graph, a graph for blocks alike, or the faster of both.
        longest: tokens, prompt and answer, that graphs are made for.
        search: whether all of Inductor's settings are tried, freezing among them.
    """

    how: Literal["auto", "whole", "blocks"] = "auto"
    longest: int = Field(default=SHORTEST, ge=64, le=131072)
    search: bool = False

    def packs(self, model: PreTrainedModel) -> bool:
        """Keys and values are written in place, as they are computed."""
        return False

    def fitted(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> "Compile":
        """Compile at once, so that no answer waits for it; what cannot be compiled answers as before."""
        found = _made.setdefault(model, {})
        if not isinstance(found.get(self), Graphs):
            hows: Sequence[How] = ("blocks", "whole") if self.how == "auto" else (self.how,)
            flags = list(FLAGS) if self.search else [USUAL.get(model.device.type, PLAIN)]
            found[self] = compile_steps(model, hows, flags, self.longest, progress)
        return self

    def graphs(self, model: PreTrainedModel) -> Graphs | None:
        """The compiled steps of a model, if there are any."""
        found = _made.get(model, {}).get(self)
        return found if isinstance(found, Graphs) else None

    def remarks(self, model: PreTrainedModel) -> tuple[str, ...]:
        """What it runs on, and when compiling pays back; or why nothing was compiled."""
        found = _made.get(model, {}).get(self, "Not compiled yet: it answers operation by operation.")
        return (str(found),)

    def held_bytes(self, model: PreTrainedModel) -> int:
        """Memory for keys and values, of what was read before, too, and copies of weights."""
        made = self.graphs(model)
        return super().held_bytes(model) + (made.held_bytes if made else 0)

    def starts(self, model: PreTrainedModel, rows: int) -> Starts:
        """A single row's pass as one graph."""
        return "graph" if rows == 1 and self.graphs(model) else "operations"

    def open(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, prefix: Prefix | None = None
    ) -> Rows:
        """One prompt goes on compiled; several go on side by side as they do without."""
        made = self.graphs(model)
        length = len(prompts[0]) + (prefix.length if prefix else 0)
        if made is None or len(prompts) > 1 or length >= made.longest or self.cache_bits < FULL:
            return super().open(model, prompts, new_tokens, prefix)
        return CompiledRows(model, prompts[0], prefix, made)


_made: "WeakKeyDictionary[PreTrainedModel, dict[Compile, Graphs | str]]" = WeakKeyDictionary()
