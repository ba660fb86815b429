"""A variant answers requests: a model, its tokenizer, its decoding settings and the recipe that made it."""

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench import model as models
from workbench import storage
from workbench.decoding import Decoding, decode
from workbench.device import resolve_device
from workbench.errors import Closed, InvalidInput, OutOfMemory
from workbench.progress import Progress
from workbench.prompting import Message, encode_chat
from workbench.step import Recipe, Step, step_from_json
from workbench.task import Task, Text

# One forward at a time in the process: a variant's timing would be wrong, and a GPU's memory unpredictable, otherwise.
model_lock = threading.RLock()
_live: "weakref.WeakSet[Variant]" = weakref.WeakSet()


@dataclass(frozen=True)
class Request:
    """What a variant is asked: the messages so far. Request steps rewrite it; nothing else does."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, prompt: "str | Sequence[Message | dict[str, str]] | Request") -> "Request":
        """A request from a user's text, or from messages with role and content."""
        if isinstance(prompt, Request):
            return prompt
        if isinstance(prompt, str):
            prompt = [Message(role="user", content=prompt)]
        try:
            messages = tuple(Message.model_validate(m) for m in prompt)
        except ValidationError:
            raise InvalidInput("A message needs a role (system, user or assistant) and a content text.") from None
        if not any(message.content.strip() for message in messages):
            raise InvalidInput("The prompt is empty: type a question.")
        return cls(messages)


@dataclass(frozen=True)
class Piece:
    """One token of an answer as it arrives.

    Attributes:
        text: what it adds to the answer; empty while a character is incomplete.
        token_id: the token.
        elapsed: seconds since the request was made.
    """

    text: str
    token_id: int
    elapsed: float


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: the answer, special tokens left out.
        token_ids: its tokens, an end token included.
        prompt_tokens: length of the prompt.
        times: seconds from the request to each token.
        finish_reason: "stop" (the model ended), "length" (the limit was reached).
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    times: tuple[float, ...]
    finish_reason: str

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0]

    @property
    def inter_token(self) -> tuple[float, ...]:
        """Seconds between one token and the next."""
        return tuple(after - before for before, after in pairwise(self.times))

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token; 0 when there is only one."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 0.0


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
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    recipe: Recipe = field(default_factory=Recipe)
    decoding: Decoding = field(default_factory=Decoding)
    _parent: "weakref.ref[Variant] | None" = None

    def __post_init__(self) -> None:
        _live.add(self)

    @property
    def parent(self) -> "Variant | None":
        """The variant this one was made from, while it is alive."""
        return self._parent() if self._parent else None

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
        return 0 if self.closed else models.total_bytes([self.model])

    @property
    def owned_bytes(self) -> int:
        """Bytes of its tensors that no other live variant uses: what closing it would return."""
        if self.closed:
            return 0
        mine = models.storages(self.model)
        for other in list(_live):
            if other is not self and not other.closed:
                for address in models.storages(other.model):
                    mine.pop(address, None)
        return sum(mine.values())

    @property
    def context_length(self) -> int:
        """How many tokens, prompt and answer together, the model can hold."""
        config = self.model.config
        limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
        return next((int(limit) for limit in limits if limit), 2048)

    def apply(self, step: Step, task: Task | Text | None = None, progress: Progress | None = None) -> "Variant":
        """Make a new variant by a step. On any error or cancel, nothing is left behind.

        Raises:
            InvalidInput: the step does not fit this variant, or needs a task and got none.
            OutOfMemory: the device has too little memory for the new variant.
            Cancelled: the progress was cancelled.
        """
        if not isinstance(step, Step):
            raise InvalidInput(f"apply() takes a step such as quantize.NF4(), not {type(step).__name__}.")
        if step.needs_data and task is None:
            raise InvalidInput(f"{step.label} needs data: pass a task, as in variant.apply({step!r}, task).")
        _ = self.model  # raises `Closed` before any work
        progress = progress or Progress()
        progress.check()
        try:
            with torch.no_grad():
                return step.apply(self, task, progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _out_of_memory(step.label, error) from None
        except RuntimeError as error:
            if "can't allocate memory" in str(error) or "out of memory" in str(error):
                raise _out_of_memory(step.label, error) from None
            raise

    def derive(self, step: Step, model: PreTrainedModel | None = None) -> "Variant":
        """The variant that a step made: this one with the step on its recipe and, if given, another model."""
        recipe = self.recipe.then(step)
        return replace(
            self,
            model=self.model if model is None else model,
            name="+".join(each.label for each in recipe),
            recipe=recipe,
            _parent=weakref.ref(self),
        )

    def renamed(self, name: str) -> "Variant":
        """The same variant under another name."""
        return replace(self, name=storage.check_name(name), model=self.model)

    def encode(self, prompt: "str | Sequence[Message | dict[str, str]] | Request") -> list[int]:
        """Token ids of a request after every request step, chat template applied.

        Control tokens written inside a message's text stay text.
        """
        request = Request.of(prompt)
        for step in self.recipe:
            rewrite = getattr(step, "rewrite", None)
            if rewrite is not None:
                request = rewrite(request)
        return encode_chat(self.tokenizer, request.messages)

    def check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise `InvalidInput` when prompt and answer do not fit the context."""
        if prompt_tokens + new_tokens > self.context_length:
            raise InvalidInput(
                f"The prompt has {prompt_tokens} tokens and up to {new_tokens} new ones were asked for, but "
                f"'{self.name}' holds {self.context_length}: shorten the prompt or lower max_new_tokens."
            )

    def stream(self, prompt: "str | Sequence[Message | dict[str, str]] | Request", **decoding: Any) -> Iterator[Piece]:
        """Answer token by token.

        Args:
            prompt: the user's text, or messages with role and content.
            decoding: `Decoding` settings for this request: max_new_tokens, temperature, top_p, seed.

        Raises:
            InvalidInput: an empty prompt, one longer than the context, or a setting out of range.
        """
        settings = self.decoding.but(**decoding)
        started = time.perf_counter()
        ids = self.encode(prompt)
        self.check_length(len(ids), settings.max_new_tokens)
        return self._stream(ids, settings, started)

    def _stream(self, ids: list[int], settings: Decoding, started: float) -> Iterator[Piece]:
        from tokenizers.decoders import DecodeStream

        text = DecodeStream(skip_special_tokens=True)
        backend = self.tokenizer.backend_tokenizer
        steps = decode(self.model, [ids], settings)
        while True:
            with model_lock:
                tokens = next(steps, None)
            if tokens is None:
                return
            token = tokens[0]
            yield Piece(text.step(backend, token) or "", token, time.perf_counter() - started)
            if token in self.end_tokens:
                return

    def generate(self, prompt: "str | Sequence[Message | dict[str, str]] | Request", **decoding: Any) -> Generation:
        """Answer in one piece; takes and raises what `stream` does."""
        settings = self.decoding.but(**decoding)
        pieces = list(self.stream(prompt, **decoding))
        tokens = tuple(piece.token_id for piece in pieces)
        return Generation(
            text=self.decode(tokens),
            token_ids=tokens,
            prompt_tokens=len(self.encode(prompt)),
            times=tuple(piece.elapsed for piece in pieces),
            finish_reason="length" if len(tokens) >= settings.max_new_tokens else "stop",
        )

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

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the variant to a folder that `load` reads back with the same logits.

        Raises:
            InvalidInput: the folder holds something that is not an export, and `overwrite` is False.
            WorkbenchError: the disk is full or the folder cannot be written; an older export there is intact.
        """
        folder = Path(path).expanduser()
        record = {
            "name": self.name,
            "source": self.source,
            "recipe": [step.to_json() for step in self.recipe],
            "decoding": self.decoding.model_dump(),
        }
        with model_lock:
            storage.write_export(folder, self.model, self.tokenizer, record, overwrite)
        return folder

    def close(self) -> None:
        """Give its memory back; using it afterwards raises `Closed`."""
        with model_lock:
            vars(self).pop("model", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # only reached once `close` has taken the attribute away
            raise Closed(f"'{self.name}' was closed: apply its recipe again to get it back.")
        raise AttributeError(f"'Variant' has no attribute '{name}'")

    def __repr__(self) -> str:
        if self.closed:
            return f"<Variant {self.name!r}, closed>"
        return f"<Variant {self.name!r}: {self.total_bytes / 1e6:.0f} MB on {self.device}, {self.recipe!r}>"


def load(
    source: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    name: str | None = None,
) -> Variant:
    """Load a model as the first variant.

    Args:
        source: a hub id, a model folder, an export, or a .gguf file; None for the embedded SmolLM2-135M-Instruct.
        device: "cpu", "cuda" or "auto" (the default).
        dtype: "float32", "bfloat16" or "float16"; by default bfloat16 on a GPU, float32 on a CPU.

    Raises:
        NotAvailable: it is neither on this machine nor on a hub that can be reached.
        InvalidInput: it is not a causal language model, or its weights are not finite.
        Corrupt: the cache or the export is damaged.
    """
    loaded = models.read_model(source, resolve_device(device), dtype)
    record = loaded.record
    return Variant(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        name=name or loaded.name,
        source=record.get("source", loaded.name if source is None else str(source)),
        recipe=Recipe(map(step_from_json, record.get("recipe", ()))),
        decoding=Decoding(**record.get("decoding", {})),
    )


def _out_of_memory(label: str, error: BaseException) -> OutOfMemory:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")[:160]
    return OutOfMemory(
        f"{label} ran out of memory ({reason}): close a variant or use a smaller model; nothing changed."
    )
