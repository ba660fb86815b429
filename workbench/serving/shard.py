"""Tensor parallel: one model run by several processes, each of which holds a part of every matrix."""

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.answering.request import Generation, Piece, Prompt
from workbench.core import files
from workbench.core.errors import InvalidInput, NotAvailable, OutOfMemory
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.core.units import size
from workbench.runtime import together, trial
from workbench.runtime.forward import using
from workbench.runtime.rows import Way
from workbench.serving import shares
from workbench.serving.group import Group
from workbench.serving.outline import speaker_of, written
from workbench.serving.ranks import Part
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas

TRIED, CONTINUED = 22, 4  # tokens that are compared before it is used; of these, those that are read one by one
UNKNOWN = Way(positions=True, padded=False, prefix=False)  # right for whatever keeps keys and values


class Sharded:
    """A model that several processes run together; it answers, streams and is closed like a variant.

    Every matrix is cut as transformers plans it for the architecture (`tp_plan`): each rank multiplies its part, and
    behind every attention and MLP the parts are summed over all ranks. So a model runs that no single process could
    hold, and on GPUs with fast links between them a token takes less time. On a CPU it takes more: the ranks share the
    same cores and memory bandwidth, and wait for each other twice a block. Tokens are chosen here, from the logits of
    the first rank: sampling, seeds, constraints and stops are those of the variant. Requests that come at once are
    decoded in turn.

    Source: Shoeybi et al., "Megatron-LM", 2019, https://arxiv.org/abs/1909.08053.

    Attributes:
        name: of the variant.
        notes: sentences that a reader of its results should know.
        parts: what each rank holds.
    """

    def __init__(self, variant: Variant, group: Group, parts: Sequence[Part]) -> None:
        self._variant, self._group = variant, group
        self.name, self.notes, self.parts = variant.name, variant.notes, tuple(parts)

    @property
    def speaker(self) -> Variant:
        """What it answers through: all of the variant but its weights. Steps that change requests may be applied."""
        return self._variant

    @property
    def closed(self) -> bool:
        """Whether its processes were ended, by `close` or because one of them failed."""
        return self._group.closed

    @property
    def bytes(self) -> tuple[int, ...]:
        """Of the parameters and buffers that each rank holds."""
        return tuple(part.bytes for part in self.parts)

    def stream(self, prompt: Prompt, *, fresh: bool = False, **decoding: Any) -> Iterator[Piece]:
        """Answer token by token; takes and raises what `Variant.stream` does.

        Raises:
            Closed: it was closed.
            NotAvailable: a rank ended or failed while it was asked.
            OutOfMemory: a rank had too little memory.
        """
        self._group.check()
        return self._variant.stream(prompt, fresh=fresh, **decoding)

    def generate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece; takes and raises what `stream` does."""
        self._group.check()
        return self._variant.generate(prompt, **decoding)

    def astream(self, prompt: Prompt, **decoding: Any) -> AsyncIterator[Piece]:
        """Answer token by token beside other requests, as `Variant.astream` does."""
        self._group.check()
        return self._variant.astream(prompt, **decoding)

    async def agenerate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece beside other requests, as `Variant.agenerate` does."""
        self._group.check()
        return await self._variant.agenerate(prompt, **decoding)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits ``(tokens, vocabulary)`` behind every token of a text, in float32 on the CPU.

        Raises:
            InvalidInput: there are no tokens, one is not in the vocabulary, or they do not fit the context.
            Closed: it was closed.
        """
        self._group.check()
        rows = self._variant.model.config.get_text_config().vocab_size
        if not len(token_ids) or not all(0 <= each < rows for each in token_ids):
            raise InvalidInput(f"logits() takes one token id or more, from 0 to {rows - 1}.")
        self._variant.check_length(len(token_ids), 0)
        with using(self.name):
            return together.read(self._group, token_ids)

    def table(self) -> "pandas.DataFrame":
        """One row a rank: its process, bytes of its parameters and buffers, and all that its process has in memory."""
        import pandas

        columns = ("pid", "parameters", "buffers", "bytes", "resident")
        found = {name: [getattr(part, name) for part in self.parts] for name in columns}
        return pandas.DataFrame(found, index=pandas.Index([part.rank for part in self.parts], name="rank"))

    def close(self) -> None:
        """End its processes; using it afterwards raises `Closed`."""
        self._group.close()
        self._variant.close()

    def __enter__(self) -> "Sharded":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        held = "closed" if self.closed else " + ".join(map(size, self.bytes))
        notes = "".join(f"; note: {each}" for each in self.notes)
        return f"<Sharded {self.name!r}: {len(self.parts)} ranks, {held}{notes}>"


@watched
def shard(
    source: Variant | str | Path,
    ranks: int = 3,
    *,
    device: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Sharded:
    """Run a model in several processes of this machine, each of which reads and holds a part of every matrix.

    Args:
        source: a variant, whose weights are written into the cache once; or a model folder or an export, which no
            process reads whole.
        ranks: how many processes. Attention heads are not cut, so it must divide their number. On GPUs, each has one.
        device: where they run, "cpu" or "cuda"; by default where the variant is, or on GPUs where there are any.
        threads: that each rank computes with on a CPU; by default they share the processor's cores.
        limit: bytes of memory that each rank may take for its part and for answering, beside what Python and its
            libraries take (on Linux, on a CPU).
        progress: told of the start, which takes seconds; a cancel ends what was started.

    Raises:
        InvalidInput: so many ranks cannot share the heads, the architecture has no plan, layers are packed or have
            adapters, or the ranks compute something else than one process; nothing is left running then.
        NotAvailable: Ray is not installed, there are too few GPUs, there is no such folder, or a rank failed.
        OutOfMemory: a part does not fit.
        Cancelled: the progress was cancelled.
    """
    progress = progress or Progress()
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1 or (limit is not None and limit < 1):
        raise InvalidInput("shard() takes one rank or more, and a limit of at least one byte.")
    speaker, place = speaker_of(source, device)
    if limit is not None and (sys.platform != "linux" or place.type != "cpu"):
        raise InvalidInput("Memory is limited on Linux and for ranks on a CPU only: leave the limit out.")
    shares.check_shares(speaker.model, ranks)
    each, notes = shares.threads_of(place, ranks)
    progress.start(f"{speaker.name}: starting {ranks} ranks", 4)
    group = Group(speaker.name, ranks, place.type, threads or each)
    try:
        folder = written(source) if isinstance(source, Variant) else files.home(source)  # while they start
        progress.advance()
        group.start(progress)
        progress.advance()
        kind = str(speaker.model.dtype).removeprefix("torch.")
        parts = _loaded(group, speaker.name, (str(folder.absolute()), kind, limit), progress)
        progress.advance()
        apart = _check(group, speaker, source.model if isinstance(source, Variant) else None)
        progress.advance()
    except BaseException:
        group.close()
        raise
    told = "one process" if isinstance(source, Variant) else "what they compute without keeping anything"
    notes = [*notes, f"The logits of {ranks} ranks are within {apart:.0e} of those of {told} on {TRIED} tokens."]
    return Sharded(replace(speaker, notes=(*speaker.notes, *notes)), group, parts)


def _loaded(group: Group, name: str, arguments: tuple[str, str, int | None], progress: Progress) -> list[Part]:
    """Have every rank read its part."""
    try:
        return group.ask("load", *arguments, progress=progress)
    except NotAvailable:
        if arguments[-1] is None:
            raise
        raise OutOfMemory(  # code that is not Python's ends the process where it gets no memory
            f"A rank of '{name}' ended while it read its part, for which {size(arguments[-1])} are too few: shard it "
            "among more ranks, or raise the limit."
        ) from None


def _check(group: Group, speaker: Variant, real: PreTrainedModel | None) -> float:
    """Compare what the ranks say of some tokens with one process, and with themselves where there is none.

    Returns:
        By how much the logits differ at most.

    Raises:
        InvalidInput: they compute something else.
    """
    outline = speaker.model
    way = UNKNOWN if real is None else replace(trial.way_of(real), prefix=False, slots=False, lean=False)
    together.put(outline, group, way)
    ids = trial.some_tokens(outline, TRIED)
    with using(speaker.name):
        whole, stepwise = together.read(group, ids), []
        wanted = whole if real is None else _one_process(real, ids)
        rows = together.Together(group, [ids[:-CONTINUED]], way)
        for token in (*ids[-CONTINUED:], 0):
            stepwise.append(rows.logits())
            rows.append(torch.tensor([token]))
    apart = 0.0
    for found, right in ((whole, wanted), (torch.cat(stepwise), wanted[-1 - CONTINUED :])):
        apart = max(apart, float((found - right).abs().max()))
        far = float((found - right).norm() / right.norm().clamp(min=1e-30))
        if not far < trial.ROUNDING.get(speaker.dtype, trial.COARSE):
            raise InvalidInput(
                f"The ranks compute something else than one process does (their logits are {far:.0%} apart): "
                f"transformers' plan does not fit this {type(outline).__name__}, so answer with replicas of it."
            )
    return apart


def _one_process(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits ``(tokens, vocabulary)`` as this process computes them, in float32 on the CPU."""
    found: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return found[0].float().cpu()
