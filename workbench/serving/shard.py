"""Tensor parallel: one model run by several processes, each of which holds a part of every matrix."""

import math
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from workbench.answering.request import Generation, Piece, Prompt
from workbench.answering.stage import Stage
from workbench.core import files
from workbench.core.device import resolve_device, resolve_dtype
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.core.progress import Progress
from workbench.core.units import size
from workbench.models import adapter_files, adapters, export, pretrained
from workbench.models.identity import identity
from workbench.recipe import from_record
from workbench.runtime import trial
from workbench.runtime.engine import Eager
from workbench.runtime.forward import using
from workbench.runtime.rows import Way
from workbench.serving import together
from workbench.serving.group import Group
from workbench.serving.ranks import Part
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas

TRIED, CONTINUED = 22, 4  # tokens that are compared before it is used; of these, those that are read one by one
KEPT_BYTES = 32 << 30  # of all models written for ranks; what was used longest ago goes first
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


def shard(
    source: Variant | str | Path, ranks: int = 3, *, limit: int | None = None, progress: Progress | None = None
) -> Sharded:
    """Run a model in several processes of this machine, each of which reads and holds a part of every matrix.

    Args:
        source: a variant, whose weights are written into the cache once; or a model folder or an export, which no
            process reads whole.
        ranks: how many processes. Attention heads are not cut, so it must divide their number. On GPUs, each has one.
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
    speaker, device = _speaker(source)
    check_shares(speaker.model, ranks)
    threads, notes = _threads(device, ranks)
    progress.start(f"{speaker.name}: starting {ranks} ranks", 4)
    group = Group(speaker.name, ranks, device.type, threads)
    try:
        folder = _written(source) if isinstance(source, Variant) else files.home(source)  # while they start
        progress.advance()
        group.start(progress)
        progress.advance()
        kind = str(speaker.model.dtype).removeprefix("torch.")
        parts = group.ask("load", str(folder), kind, limit, progress=progress)
        progress.advance()
        apart = _check(group, speaker, source.model if isinstance(source, Variant) else None)
        progress.advance()
    except BaseException:
        group.close()
        raise
    told = "one process" if isinstance(source, Variant) else "what they compute without keeping anything"
    notes = [*notes, f"The logits of {ranks} ranks are within {apart:.0e} of those of {told} on {TRIED} tokens."]
    return Sharded(replace(speaker, notes=(*speaker.notes, *notes)), group, parts)


def check_shares(model: PreTrainedModel, ranks: int) -> None:
    """Raise `InvalidInput` unless so many ranks can share a model; its weights are not looked at."""
    if ranks == 1:
        return
    plan = {name: style for name, style in (model.tp_plan or {}).items() if "*" in name}
    if not plan:
        raise InvalidInput(
            f"transformers has no plan (tp_plan) by which several ranks share a {type(model).__name__}: answer with "
            "replicas of it, or use an architecture such as Llama, Qwen3, Mistral or Gemma."
        )
    counts = _counts(model, plan)
    most = math.gcd(*counts.values())
    if most % ranks:
        *rest, last = [str(number) for number in range(1, most + 1) if most % number == 0]
        numbers = f"{', '.join(rest)} or {last} ranks" if rest else "1 rank"
        what = " and ".join(f"{count} {name}" for name, count in counts.items())
        raise InvalidInput(f"{what} can be shared by {numbers}, not {ranks}.")


def _counts(model: PreTrainedModel, plan: dict[str, str]) -> dict[str, int]:
    """What the ranks must share evenly: heads where attention is cut, channels where matrices are fused."""
    config = model.config.get_text_config()
    found = {}
    if any("att" in name and style == "colwise" for name, style in plan.items()):
        found["heads"] = int(config.num_attention_heads)
        shared = getattr(config, "num_key_value_heads", None) or found["heads"]
        found |= {"key/value heads": int(shared)} if shared != found["heads"] else {}
    if any(style == "packed_colwise" for style in plan.values()):
        found["channels of an expert"] = int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    return found or {"channels": int(config.hidden_size)}


def _threads(device: torch.device, ranks: int) -> tuple[int, list[str]]:
    """Of each rank, and what should be known of how they share this machine.

    Raises:
        NotAvailable: there are too few GPUs.
    """
    if device.type == "cuda" and torch.cuda.device_count() < ranks:
        count = torch.cuda.device_count()
        raise NotAvailable(
            f"{ranks} ranks need {ranks} GPUs, and there {'is 1' if count == 1 else f'are {count}'} here: use as many "
            "ranks, or load the model with device='cpu'."
        )
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput("Ranks run on CPUs or on CUDA GPUs: load the model with device='cpu'.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    crowded = device.type == "cpu" and ranks > cores
    notes = (
        [f"{ranks} ranks share {cores} cores: they wait for each other, and a token takes longer."] if crowded else []
    )
    return max(1, cores // ranks), notes


def _speaker(source: Variant | str | Path) -> tuple[Variant, torch.device]:
    """Who answers, with the outline of its model in place of the weights; and where its ranks run.

    Raises:
        InvalidInput: its layers are packed or have adapters, or it is no causal language model.
        NotAvailable: there is no such folder.
    """
    if not isinstance(source, Variant):
        return _of_folder(files.home(source)), resolve_device(None)
    adapters.check_dense(source.model, source.name, "only dense weights can be shared, so shard its dense parent")
    notes = list(source.notes)
    if source.engine != Eager():
        notes.append(f"The ranks run it in the plain way, without {source.engine!r}.")
    stages = tuple(each for each in source.stages if type(each).known is Stage.known)
    notes += [
        f"{type(each).__name__} is left out: nothing is kept of answers."
        for each in source.stages
        if each not in stages
    ]
    outline = _outline(source.model.config, source.dtype, source.model.generation_config)
    made = replace(source, model=outline, stages=stages, notes=tuple(notes), engine=together.Ranks())
    return made, source.device


def _of_folder(folder: Path) -> Variant:
    if not files.is_kind(folder, Path.is_dir):
        raise NotAvailable(
            f"There is no model folder '{str(folder)[:200]}': check the path, or shard a loaded variant."
        )
    record = export.read_manifest(folder) if export.is_export(folder) else {}
    made = from_record(record) | {"engine": together.Ranks()}
    place = str(folder)
    with pretrained.refusing(place), pretrained.quietly():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = pretrained.read_tokenizer(place)
        if record.get("packed") or getattr(config, "quantization_config", None):
            raise InvalidInput(f"'{place}' is quantized: only dense weights can be shared, so shard its dense parent.")
        if (folder / adapter_files.FOLDER).is_dir():
            raise InvalidInput(f"'{place}' has an adapter: load it, apply finetune.Fuse() and shard that.")
        kind = getattr(torch, record["dtype"]) if record else resolve_dtype(None, resolve_device(None))
        settings = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
        outline = _outline(config, kind, settings)
    name = str(record.get("name", folder.name))
    return Variant(outline, tokenizer, name, place, notes=tuple(record.get("notes", ())), **made)


def _outline(config: Any, dtype: torch.dtype, settings: GenerationConfig | None) -> PreTrainedModel:
    """A model of a configuration, its tensors without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    if settings is not None:
        model.generation_config = settings
    model.eval()
    return model


def _written(variant: Variant) -> Path:
    """The variant's weights as an export in the cache, by content."""
    folder = files.cache_folder() / "sharded" / identity(variant.model)[:40]
    if not export.is_export(folder):
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise files.write_refused(folder, error) from None
        variant.save(folder, overwrite=True)
    with suppress(OSError):
        os.utime(folder)
        found = sorted(filter(export.is_export, folder.parent.iterdir()), key=lambda each: -each.stat().st_mtime)
        sizes = [sum(file.stat().st_size for file in each.rglob("*")) for each in found]
        for at, each in enumerate(found):
            if each != folder and sum(sizes[: at + 1]) > KEPT_BYTES:
                shutil.rmtree(each, ignore_errors=True)
    return folder


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
        whole = together.read(group, ids)
        wanted = (
            whole if real is None else real(input_ids=torch.tensor([ids], device=real.device)).logits[0].float().cpu()
        )
        rows, got = together.Together(group, [ids[:-CONTINUED]], way), [whole]
        for step in range(-CONTINUED, 1):
            got.append(rows.logits())
            rows.append(torch.tensor([ids[step]]))
    stepwise = torch.cat(got[1:])
    for found, right in ((whole, wanted), (stepwise, wanted[-1 - CONTINUED :])):
        apart = float((found - right).norm() / right.norm().clamp(min=1e-30))
        if not apart < trial.ROUNDING.get(speaker.dtype, trial.COARSE):
            raise InvalidInput(
                f"The ranks compute something else than one process does (their logits are {apart:.0%} apart): "
                f"transformers' plan does not fit this {type(outline).__name__}, so answer with replicas of it."
            )
    return max(float((whole - wanted).abs().max()), float((stepwise - wanted[-1 - CONTINUED :]).abs().max()))
