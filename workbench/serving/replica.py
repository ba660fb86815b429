"""One process that answers for a service: a live variant, a GGUF file in llama.cpp, or an endpoint elsewhere."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from workbench.answering.request import Piece, Request
from workbench.answering.speaker import Respondent
from workbench.answering.stage import overrides
from workbench.core.device import trim
from workbench.core.errors import InvalidInput, NotAvailable, WorkbenchError
from workbench.core.optional import library
from workbench.serving.endpoint import Endpoint, connect
from workbench.serving.shard import shard
from workbench.serving.wire import Ask, refused
from workbench.step import RequestStep
from workbench.steps.prompt import Constrain
from workbench.variant import Variant, load

Told = dict[str, Any]  # on its way to the front
ROWS = 16  # requests that one of them answers at once
TRIM = 60.0  # seconds after which freed memory is given back


@dataclass(frozen=True)
class Source:
    """What answers, in a form that another process can be given.

    Attributes:
        path: of an export, a model or a .gguf file; or the address of an endpoint.
        name: of the model, as clients call it.
        device: where a variant runs.
        dtype: of its activations.
        threads: of a process that answers on a CPU.
        ranks: processes that run a variant together.
        rows: answers that go on at once in llama.cpp.
        model: what the endpoint calls it.
        key: of the endpoint.
        timeout: seconds that an answer of an endpoint or of llama.cpp may take.
    """

    path: str
    name: str
    device: str = "cpu"
    dtype: str | None = None
    threads: int = 1
    ranks: int = 1
    rows: int = ROWS
    model: str = ""
    key: str = field(default="", repr=False)
    timeout: float = 600.0

    def opened(self) -> tuple[Respondent, Any]:
        """Who answers, and what must be held meanwhile."""
        if self.path.startswith(("http://", "https://")):
            return connect(self.path, self.model or None, self.key or None, timeout=self.timeout), None
        if Path(self.path).suffix == ".gguf":
            server, (url, key) = llama_server(self.path, self.threads, self.rows)
            return connect(url, key=key, timeout=self.timeout), server
        if self.ranks > 1:
            each = max(1, self.threads // self.ranks)
            sharded = shard(self.path, self.ranks, device=self.device, threads=each)
            return sharded.speaker, sharded
        return load(self.path, device=self.device, dtype=self.dtype, name=self.name), None


def llama_server(path: str, threads: int, rows: int, context: int = 0) -> tuple[Any, tuple[str, str]]:
    """llama.cpp's own server in this process, on a port that only this machine reaches, with a key of its own.

    Args:
        path: of a .gguf file.
        threads: that it computes with.
        rows: answers that go on at once.
        context: tokens of each; 0 for as many as the model was made for.

    Returns:
        What must be held while it runs, and its address and key.

    Raises:
        InvalidInput: there is no such file.
        NotAvailable: xllamacpp is not installed, or cannot run it.
    """
    module = library("xllamacpp", "Serving a GGUF file", extra="engine")
    if not Path(path).is_file():
        raise InvalidInput(f"There is no file '{path}'.")
    settings = module.CommonParams()
    key = secrets.token_urlsafe()  # without one, any page in a browser here may ask it
    settings.model.path, settings.api_keys, settings.verbosity = path, [key], 0
    settings.n_parallel, settings.n_ctx, settings.port = rows, context * rows, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    try:
        server = module.Server(settings)
        return server, (f"{server.listening_address}/v1", key)
    except RuntimeError as error:
        raise NotAvailable(f"llama.cpp cannot run '{path}': {error}.") from None


class Replica:
    """Answers one request after another, or many at once, as its engine does.

    Args:
        source: what answers.
        label: tells this process from others.
    """

    def __init__(self, source: Source, label: str) -> None:
        self.label = label
        if torch.get_num_threads() != source.threads:
            torch.set_num_threads(source.threads)
        self._respondent, self._held = source.opened()
        self._trimmed = time.monotonic()

    async def answer(self, told: Mapping[str, Any]) -> AsyncIterator[Told]:
        """Who answers; then each piece; then the counts, or why there is no answer. An error is told, not raised."""
        yield {"replica": self.label, "process": os.getpid()}
        try:
            ask = Ask.model_validate(told)
            respondent, held_back = await asyncio.to_thread(self._asked, ask)  # a schema takes long to compile
            decoding = dict(ask.decoding)
            async for each in _texts(respondent, _request(ask), decoding, held_back):
                yield each
        except WorkbenchError as error:
            if self._gone:  # another replica answers, and this one is replaced at once
                os._exit(1)
            yield {"error": refused(error)}

    @property
    def _gone(self) -> bool:
        """Whether it can answer no more."""
        return self._respondent.closed or getattr(self._held, "closed", False)

    def check(self) -> None:
        """Raise an error where it can answer no more; every minute, give freed memory back."""
        if time.monotonic() - self._trimmed > TRIM:
            trim()
            self._trimmed = time.monotonic()
        if self._gone:
            raise NotAvailable("What answers was closed.")

    def _asked(self, ask: Ask) -> tuple[Respondent, int]:
        """Who answers such a request, and how many characters may still be taken back while it does."""
        respondent = self._respondent
        if isinstance(respondent, Endpoint):
            if ask.plain:
                raise InvalidInput("What answers here takes conversations only: ask /v1/chat/completions.")
            more: dict[str, Any] = {"stop": ask.stops} if ask.stops else {}
            if ask.form:
                schema = {"name": "form", "schema": json.loads(ask.form)}
                more["response_format"] = {"type": "json_schema", "json_schema": schema}
            return replace(respondent, more=more), 0
        assert isinstance(respondent, Variant)
        if ask.form:
            respondent = respondent.apply(Constrain(rule=ask.form))
        if ask.stops:
            respondent = respondent.apply(_Stops(texts=tuple(ask.stops)))
        return respondent, _held_back(self._respondent, ask.stops)


def _request(ask: Ask) -> Request:
    return Request.of(ask.messages).but(salt=ask.salt, plain=ask.plain)


class _Stops(RequestStep):
    """Ends an answer at any of some texts, as they were sent, and cuts it off there."""

    texts: tuple[str, ...]

    def enough(self, text: str, chances: Sequence[float]) -> tuple[int, str] | None:
        """Where the first of them begins."""
        found = [at for each in self.texts if (at := text.find(each)) >= 0]
        return (min(found), "stop") if found else None


def _held_back(variant: Respondent, stops: list[str]) -> int:
    """Characters at the end of what was said that may be no part of the answer; -1 for all."""
    stages = variant.stages if isinstance(variant, Variant) else ()
    takes_back = any(overrides(each, name) for each in stages for name in ("enough", "finish"))
    if takes_back or any(each.samples > 1 for each in stages):
        return -1
    return max(map(len, stops), default=1) - 1


async def _texts(
    respondent: Respondent, request: Request, decoding: Mapping[str, Any], held_back: int
) -> AsyncIterator[Told]:
    """The answer's text as far as it is sure, with the tokens so far; at the end the rest of it and the counts."""
    said, sent, tokens = "", 0, 0
    async for piece in respondent.astream(request, **decoding):
        tokens += 1
        said += piece.text
        if piece.answer:
            yield _end(piece, sent, said)
            return
        sure = len(said) - held_back if held_back >= 0 else 0
        if sure > sent:
            yield {"text": said[sent:sure], "tokens": tokens}
            sent = sure


def _end(piece: Piece, sent: int, said: str) -> Told:
    answer = piece.answer
    assert answer is not None
    text = answer.text if answer.text.startswith(said[:sent]) else said[:sent]
    return {
        "text": text[sent:],
        "whole": answer.text,
        "reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.spent or len(answer.times),
        "notes": list(answer.notes),
        "cached": answer.cached,
    }
