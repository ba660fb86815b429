"""A variant answers requests: a model, its tokenizer, its decoding settings and the recipe that made it."""

import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.answering import concurrent
from workbench.answering.answers import begin, streamed
from workbench.answering.request import Generation, Piece, Prompt, Request
from workbench.answering.stage import Stage
from workbench.core import files
from workbench.core.device import resolve_device, resolve_dtype
from workbench.core.drawn import HTML, drawn
from workbench.core.errors import Closed, InvalidInput, NotAvailable
from workbench.core.line import watched
from workbench.core.lineage import Life, lives
from workbench.core.progress import Progress
from workbench.models import export, loading, sharing
from workbench.models.interchange import gguf
from workbench.models.tokens import closing_tokens, encode_chat, encode_plain
from workbench.recipe import Recipe, RecipeStep, from_record, to_record
from workbench.runtime import offload, room, trial
from workbench.runtime.decoding import Decoding
from workbench.runtime.engine import Eager, Engine
from workbench.runtime.forward import memory_guard, using
from workbench.runtime.running import context_length
from workbench.tasks.task import Task, Text


@dataclass(frozen=True, eq=False, repr=False)
class Variant:
    """One optimized form of a model. A frozen value: `apply` gives a new one and leaves this as it is.

    Attributes:
        model: the transformers model; its tensors may be shared with other variants, never write into them.
        tokenizer: turns text into tokens.
        name: what it is called in tables and charts.
        recipe: the steps that made it from the loaded model.
        decoding: how tokens are chosen unless a request says otherwise.
        source: what was loaded (a hub id, a path, or the embedded model's name).
        stages: what a request passes, in this order, on its way in and again on its way out.
        notes: sentences on how it was made that a reader of its results should know.
        engine: how its model is run.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    recipe: Recipe = field(default_factory=Recipe)
    decoding: Decoding = field(default_factory=Decoding)
    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()
    engine: Engine = field(default_factory=Eager)
    _life: Life = field(default_factory=Life, init=False)
    _parent: "weakref.ref[Life] | None" = None
    _root: int | None = None  # age of the loaded variant that it was made from

    def __post_init__(self) -> None:
        self._life.name(self)

    def __eq__(self, other: object) -> bool:
        """The same variant, under whatever name."""
        return isinstance(other, Variant) and self._life is other._life

    def __hash__(self) -> int:
        return hash(self._life)

    @property
    def parent(self) -> "Variant | None":
        """The variant this one was made from, while it is alive."""
        life = self._parent() if self._parent else None
        return life.bearers[-1] if life and life.bearers else None

    @property
    def ancestors(self) -> "tuple[Variant, ...]":
        """Those it was made from that are still alive, the nearest first."""
        return () if self.parent is None else (self.parent, *self.parent.ancestors)

    @property
    def root(self) -> int:
        """Number of the loaded variant that it was made from; variants of one load have the same."""
        return self._life.born if self._root is None else self._root

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of its activations."""
        return self.model.dtype

    @property
    def closed(self) -> bool:
        """Whether its memory was given back."""
        return "model" not in vars(self)

    @property
    def total_bytes(self) -> int:
        """Bytes of all its tensors, shared ones included."""
        return 0 if self.closed else sharing.total_bytes([self.model])

    @property
    def owned_bytes(self) -> int:
        """Bytes of its tensors that no older live variant holds: over all live variants they add up to the total."""
        return weights().get(self, (0, 0))[1]

    @property
    def context_length(self) -> int:
        """How many tokens, prompt and answer together, the model can hold."""
        return context_length(self.model.config)

    @watched
    def apply(self, step: RecipeStep, task: Task | Text | None = None, progress: Progress | None = None) -> "Variant":
        """Make a new variant by a step. On any error or cancel, nothing is left behind.

        Raises:
            InvalidInput: the step does not fit this variant, or needs a task and got none.
            OutOfMemory: the device has too little memory for the new variant.
            Cancelled: the progress was cancelled.
        """
        if not isinstance(step, RecipeStep):
            raise InvalidInput(f"apply() takes a step such as quantize.NF4(), not {type(step).__name__}.")
        if step.needs_data and task is None:
            raise InvalidInput(f"{step.label} needs data: pass a task, as in variant.apply({step!r}, task).")
        _ = self.model  # raises `Closed` before any work
        progress = progress or Progress()
        progress.check()
        with torch.no_grad(), memory_guard(step.label):
            made: Variant = step.apply(self, task, progress)
            if made.model is self.model:
                return made
            trial.check_runs(made.model, step.label)
            engine = made.engine.fitted(made.model, made.tokenizer, progress)
            stale = self.engine.remarks(self.model)
            notes = _with(engine.remarks(made.model), [each for each in made.notes if each not in stale])
            return made if (engine, notes) == (made.engine, made.notes) else replace(made, engine=engine, notes=notes)

    def derive(
        self,
        step: RecipeStep,
        model: PreTrainedModel | None = None,
        notes: Sequence[str] = (),
        stage: Stage | None = None,
        engine: Engine | None = None,
    ) -> "Variant":
        """The variant that a step made: this one with the step on its recipe and whatever else is given."""
        recipe = self.recipe.then(step)
        return replace(
            self,
            model=self.model if model is None else model,
            name="+".join(each.label for each in recipe),
            recipe=recipe,
            stages=(*self.stages, *([] if stage is None else [stage])),
            notes=(*self.notes, *(each for each in notes if each not in self.notes)),
            engine=self.engine if engine is None else engine,
            _parent=weakref.ref(self._life),
            _root=self.root,
        )

    def renamed(self, name: str) -> "Variant":
        """The same variant under another name, safe as a file name: its children, its age and what it owns stay."""
        return self.under(files.check_name(name))

    def under(self, name: str) -> "Variant":
        """The same variant under any other name."""
        other = replace(self, name=name)
        object.__setattr__(other, "_life", self._life)
        self._life.name(other)
        return other

    def rewritten(self, prompt: Prompt) -> Request:
        """The request once every stage has worked on it."""
        request = Request.of(prompt)
        for stage in self.stages:
            request = stage.rewrite(request, self)
        return request

    def tokens(self, request: Request) -> list[int]:
        """Token ids of a request as it is, chat template applied.

        Control tokens written inside a message's or a document's text stay text.
        """
        encode = encode_plain if request.plain else encode_chat
        return encode(self.tokenizer, request.written())

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a request once every stage has worked on it."""
        return self.tokens(self.rewritten(prompt))

    def check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise `InvalidInput` when prompt and answer do not fit the context."""
        if prompt_tokens + new_tokens > self.context_length:
            raise InvalidInput(
                f"The prompt has {prompt_tokens} tokens and up to {new_tokens} new ones were asked for, but "
                f"'{self.name}' holds {self.context_length}: shorten the prompt or lower max_new_tokens."
            )

    def stream(self, prompt: Prompt, *, fresh: bool = False, **decoding: Any) -> Iterator[Piece]:
        """Answer token by token.

        Args:
            prompt: the user's text, or messages with role and content; an answer at their end is continued.
            fresh: ask the model, even where a cache of answers knows what it said before.
            decoding: `Decoding` settings for this request: max_new_tokens, temperature, top_p, seed.

        Raises:
            InvalidInput: an empty prompt, one longer than the context, or a setting out of range.
        """
        return streamed(begin(self, prompt, decoding, fresh))

    def generate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece; takes and raises what `stream` does."""
        *_, last = self.stream(prompt, **decoding)
        assert last.answer is not None
        return last.answer

    def astream(self, prompt: Prompt, **decoding: Any) -> AsyncIterator[Piece]:
        """Answer token by token beside other requests: `async for piece in variant.astream(...)`.

        Requests come when they like, from any event loop or thread; who came first is answered first, and many
        together where the engine can. What is no longer waited for, such as a cancelled task, leaves its place at once.

        Raises:
            Busy: too many requests wait already.
            Closed: the variant was closed.
            InvalidInput: what `stream` refuses.
        """
        return concurrent.stream(self, prompt, decoding)

    async def agenerate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece beside other requests; takes and raises what `astream` does."""
        return await concurrent.generate(self, prompt, decoding)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        config = self.model.generation_config
        listed = getattr(config, "eos_token_id", None)
        ends = set(listed) if isinstance(listed, list) else {listed}
        return frozenset(int(end) for end in ends | {self.tokenizer.eos_token_id} if end is not None)

    @property
    def answer_end(self) -> tuple[int, ...]:
        """What stands behind an answer: as the chat template closes a turn, up to the token that ends it.

        Where the template names no token that ends an answer, or there is none, it is the tokenizer's, or the first
        that the generation settings name.
        """
        ends, closing = self.end_tokens, closing_tokens(self.tokenizer)
        last = next((at for at, token in enumerate(closing) if token in ends), None)
        if last is not None:
            return tuple(closing[: last + 1])
        end = self.tokenizer.eos_token_id
        return (end,) if end is not None else tuple(sorted(ends)[:1])

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the variant to a folder that `load` and plain transformers read.

        `load` gives the same logits and the recipe. `AutoModelForCausalLM.from_pretrained` needs nothing of the
        workbench: it finds dense weights as they are, and packed layers in the layout of bitsandbytes (NF4, FP4,
        LLM.int8()) or of compressed-tensors (other integers, float8), which is the format of vLLM. What these cannot
        hold, others see in the nearest way they can: dense in 16 bits an int8 head that the token embedding shares, and
        layers that their library does not replace; in 8-bit codes zero points between integers, rounded. Steps that
        rewrite requests are recorded, but only the workbench applies them. `verify_export` checks the result.

        A path that ends in .gguf becomes one file for llama.cpp instead: codes of 8 and 4 bits as they are where its
        layout has them, adapters fused in, without the recipe; it says itself what was rounded.

        Raises:
            InvalidInput: something that is not an export is there, and `overwrite` is False; or llama.cpp cannot run
                such a model.
            WorkbenchError: the disk is full, the folder cannot be written, or what was written could not be loaded
                again; an older export there is intact.
        """
        folder = files.home(path)
        if folder.suffix == ".gguf":
            with using(self.name):
                gguf.save(folder, self.model, self.tokenizer, self.name, overwrite)
            return folder
        made = to_record(self.recipe, self.stages, self.decoding, self.engine)
        remarks = self.engine.remarks(self.model)  # who loads it gets those of the engine that is made ready there
        notes = [each for each in self.notes if each not in remarks]
        record = {"name": self.name, "source": self.source, "notes": notes, **made}
        with using(self.name):
            export.write_export(folder, offload.whole(self.model), self.tokenizer, record, overwrite)
        return folder

    def close(self) -> None:
        """Give its memory back; using it afterwards raises `Closed`."""
        with using(self.name):
            for each in self._life.bearers:
                vars(each).pop("model", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    if not TYPE_CHECKING:  # a type checker would take every misspelt attribute for one that is there

        def __getattr__(self, name: str) -> Any:
            if name == "model":  # only reached once `close` has taken the attribute away
                raise Closed(f"'{self.name}' was closed: apply its recipe again to get it back.")
            raise AttributeError(f"'Variant' has no attribute '{name}'")

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        if self.closed:
            return f"<Variant {self.name!r}, closed>"
        notes = "".join(f"; note: {each}" for each in self.notes)
        return f"<Variant {self.name!r}: {self.total_bytes / 1e6:.0f} MB on {self.device}, {self.recipe!r}{notes}>"


def _with(remarks: Iterable[str], notes: Iterable[str]) -> tuple[str, ...]:
    """Notes with what an engine remarks, each once."""
    return tuple(dict.fromkeys((*notes, *remarks)))


def live() -> list[Variant]:
    """Every variant that is in use and not closed, each under its newest name, the oldest first."""
    found = [life.bearers[-1:] for life in lives()]
    return [each for names in found for each in names if not each.closed]


def weights() -> dict[Variant, tuple[int, int]]:
    """Of every live variant, the bytes of all its tensors, and of those that no older one holds."""
    seen: dict[int, dict[int, int]] = {}  # by model: variants that differ in requests alone have the same one
    held: set[int] = set()
    found = {}
    for each in live():
        model = each.model
        mine = seen.get(id(model)) or seen.setdefault(id(model), sharing.storages(model))
        found[each] = sum(mine.values()), sum(size for place, size in mine.items() if place not in held)
        held |= mine.keys()
    return found


@watched
def load(
    source: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Variant:
    """Load a model as the first variant.

    A checkpoint of bitsandbytes or compressed-tensors keeps its codes; a .gguf file is unpacked once and kept in the
    cache. A folder of peft is its model with the adapter on it.

    Args:
        source: a hub id, a model folder, an adapter of peft, an export, or a .gguf file; None for the embedded
            SmolLM2-135M-Instruct. What looks like a path and is not there is never asked of the hub.
        device: "cpu", "cuda" or "auto" (the default).
        dtype: "float32", "bfloat16" or "float16"; by default bfloat16 on a GPU, float32 on a CPU.
        name: of the variant; by default that of the file or folder.
        progress: told of what takes long.

    Raises:
        NotAvailable: it is neither on this machine nor on a hub that can be reached.
        InvalidInput: it is not a causal language model, its weights are not finite, or it is an export with something
            that this workbench does not know; nothing was loaded then.
        Corrupt: the cache or the export is damaged.
        OutOfMemory: the device has too little memory.
    """
    folder = None if source is None else files.home(source)
    record = export.read_manifest(folder) if folder is not None and export.is_export(folder) else {}
    made = from_record(record)  # what is not known is refused before any weight is read
    progress = progress or Progress()
    with memory_guard(f"Loading '{source or loading.DEFAULT_NAME}'"):
        place = resolve_device(device)
        if source is not None:
            room.check_loads(source, place, resolve_dtype(dtype, place), str(source)[:200])
        loaded = loading.read_model(source, place, dtype, progress)
        engine, told = _engine(made.pop("engine"), loaded, progress)
    notes = (*loaded.notes, *record.get("notes", ()), *trial.notes(trial.way_of(loaded.model)), *told)
    return Variant(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        name=name or loaded.name,
        source=record.get("source", loaded.name if source is None else str(source)),
        notes=tuple(dict.fromkeys(notes)),
        engine=engine,
        **made,
    )


def _engine(engine: Engine, loaded: loading.Loaded, progress: Progress) -> tuple[Engine, tuple[str, ...]]:
    """The engine that an export names, ready for the model; where this machine lacks it the plain one, and a note."""
    try:
        ready = engine.fitted(loaded.model, loaded.tokenizer, progress)
        return ready, ready.remarks(loaded.model)
    except NotAvailable as error:
        return Eager(), (f"It is run in the plain way here. {error}",)
