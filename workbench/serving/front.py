"""What clients of a service talk to: OpenAI's interface, keys, bounds, and a replica for each request.

Imported by the processes of a service only: FastAPI and Ray come with an extra.
"""

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import list_named_actors
from starlette.types import Receive, Scope, Send

from workbench.core.errors import first_line
from workbench.serving.board import Board, Going
from workbench.serving.wire import ANSWERS, REPLICA, Ask, Body, Chat, Completion, Refused, parsed, reason

MOST_BYTES = 8 << 20  # of a request
PATIENCE = 30.0  # seconds for a request to arrive
TRIES = 5  # replicas that may die before one has said anything
PAUSE = 0.1  # seconds before the second try, then twice as long each time: Ray needs some to hear of a death
LOCAL = ("127.0.0.1", "localhost", "::1")
app = FastAPI(openapi_url=None)


@dataclass(frozen=True)
class Settings:
    """How a service answers its clients.

    Attributes:
        model: what clients call it.
        key: SHA-256 of the key that they must give, empty for none.
        timeout: seconds that an answer may take.
    """

    model: str
    key: str
    timeout: float


def digest(key: str) -> str:
    """What of a key may be kept."""
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


@app.exception_handler(Refused)
async def _refuse(_: Request, error: Refused) -> JSONResponse:
    return JSONResponse(error.shape, error.status, error.headers)


@app.exception_handler(404)
@app.exception_handler(405)
async def _unknown(request: Request, _: Exception) -> JSONResponse:
    error = Refused(404, f"There is no {request.method} {request.url.path[:100]} here.")
    return JSONResponse(error.shape, error.status)


@app.exception_handler(Exception)
async def _broken(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(Refused(500, f"The service failed: {type(error).__name__}.").shape, 500)


class Front:
    """Reads requests, gives each to a replica, and writes down what it says."""

    def __init__(self, replicas: DeploymentHandle[Any], settings: Settings) -> None:
        self._settings, self._board = settings, Board()
        self._answers = replicas.options(method_name="answer", stream=True)
        self._started = int(time.time())

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """A conversation, answered."""
        return await self._answer(request, Chat)

    @app.post("/v1/completions")
    async def complete(self, request: Request) -> Response:
        """A text, continued."""
        return await self._answer(request, Completion)

    @app.get("/v1/models")
    async def models(self, request: Request) -> Any:
        """The only one."""
        self._check_key(request)
        return {"object": "list", "data": [self._model]}

    @app.get("/v1/models/{name:path}")
    async def model(self, request: Request, name: str) -> Any:
        """One by its name."""
        self._check_key(request)
        self._check_model(name)
        return self._model

    @app.get("/health")
    async def health(self) -> Any:
        """That the front answers; a replica that does not is replaced by Ray."""
        return {"status": "ok", "model": self._settings.model}

    @app.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        self._check_key(request)
        return Response(self._board.exposition(), media_type="text/plain; version=0.0.4")

    @app.get("/replicas")
    async def replicas(self, request: Request) -> Any:
        """What each replica has done and does now."""
        self._check_key(request)
        return self._board.shown(await asyncio.to_thread(_running))

    @property
    def _model(self) -> dict[str, Any]:
        return {"id": self._settings.model, "object": "model", "created": self._started, "owned_by": "workbench"}

    def _check_key(self, request: Request) -> None:
        if not self._settings.key:
            if request.url.hostname not in LOCAL:  # a page that was given this machine's address for its own name
                raise Refused(403, "Without a key, this service answers under this machine's own names only.")
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(digest(given), self._settings.key):
            raise Refused(
                401, "The key is missing or wrong: send it as 'Authorization: Bearer KEY'.", "invalid_api_key"
            )

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self._settings.model):
            said = f"There is no model '{str(name)[:100]}' here: it is called '{self._settings.model}'."
            raise Refused(404, said, "model_not_found", "model")

    async def _answer(self, request: Request, kind: type[Body]) -> Response:
        self._check_key(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "Send the request as application/json.")  # pages elsewhere may send anything else
        body = parsed(kind, await _read(request))
        self._check_model(body.model)
        ask, going = body.ask(), self._board.enter()
        told = self._told(ask, going, bool(body.stream))
        try:
            first = await anext(told)
        except Refused as error:
            self._board.leave(going, error.status)
            raise
        except BaseException:  # the client left
            self._board.leave(going, 499)
            raise
        words = _Words(kind is Chat, self._settings.model)
        headers = {REPLICA: going.replica, "Cache-Control": "no-store"}
        if body.stream:
            events = self._events(first, told, going, words, body.usage)
            return _Stream(events, self._board, going, headers)
        return JSONResponse(await self._whole(first, told, going, words), headers=headers)

    async def _told(self, ask: Ask, going: Going, streams: bool) -> AsyncGenerator[Mapping[str, Any], None]:
        """What replicas say to a request: pieces of text, then the counts.

        Where one dies, another begins anew, as long as the client has heard nothing.

        Raises:
            Refused: there will be no answer, or no more of it.
        """
        end = time.monotonic() + self._settings.timeout
        for tried in range(TRIES):
            if tried:
                await asyncio.sleep(min(PAUSE * 2 ** (tried - 1), max(0.0, end - time.monotonic())))
            heard = False
            answers: Any = self._answers.options(session_id=digest(ask.session)).remote(ask.model_dump())
            try:
                while True:
                    told = await asyncio.wait_for(anext(answers, None), end - time.monotonic())
                    if told is None:
                        return
                    if "replica" in told:
                        self._board.seat(going, told["replica"], told["process"])
                        continue
                    if "error" in told:
                        raise Refused.of(*told["error"])
                    heard = streams
                    self._board.spoke(going)
                    yield told
            except TimeoutError:
                raise Refused(504, f"No answer within {self._settings.timeout:g} s.", "timeout") from None
            except BackPressureError:
                raise Refused(429, "Too many requests wait already: ask again later.", "busy") from None
            except RayActorError:
                self._board.lose(going)
                if heard or tried == TRIES - 1:
                    raise Refused(502, "The replica that answered has died: ask again.", "replica_died") from None
            except RayError as error:
                raise Refused(502, f"The replica failed: {first_line(error)}.", "replica_failed") from None
            finally:
                with suppress(RayServeException):  # one that was never given to a replica says so again
                    answers.cancel()

    async def _whole(
        self, first: Mapping[str, Any], told: AsyncGenerator[Mapping[str, Any], None], going: Going, words: "_Words"
    ) -> dict[str, Any]:
        """The answer in one piece."""
        last, status = first, 499
        try:
            async for piece in told:
                last = piece
            found = words.whole(last)
            status = 200
            return found
        except Refused as error:
            status = error.status
            raise
        finally:
            await told.aclose()
            self._board.leave(going, status, last.get("prompt_tokens", 0), last.get("answer_tokens", 0))

    async def _events(
        self,
        first: Mapping[str, Any],
        told: AsyncGenerator[Mapping[str, Any], None],
        going: Going,
        words: "_Words",
        usage: bool,
    ) -> AsyncIterator[str]:
        """The answer in events as it comes; an error is the last of them."""
        last, status = first, 499
        try:
            async with aclosing(told):
                yield words.opening() + words.piece(first)
                async for last in told:
                    yield words.piece(last)
            status = 200
            yield (words.counts(last) if usage else "") + "data: [DONE]\n\n"
        except Refused as error:
            status = error.status
            yield _event(error.shape)
        finally:
            self._board.leave(going, status, last.get("prompt_tokens", 0), last.get("answer_tokens", 0))


class _Stream(StreamingResponse):
    """Events, after which a request has left even where its client went before the first of them."""

    def __init__(self, events: AsyncIterator[str], board: Board, going: Going, headers: Mapping[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._board, self._going = board, going

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._board.leave(self._going, 499)


def _running() -> set[str]:
    """The replicas behind this front, by their names."""
    prefix = f"SERVE_REPLICA::{serve.get_replica_context().app_name}#{ANSWERS}#"
    found = (each["name"] for each in list_named_actors(all_namespaces=True))
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


async def _read(request: Request) -> bytes:
    """The body, bounded in bytes and in time."""
    found = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                found += part
                if len(found) > MOST_BYTES:
                    raise Refused(413, f"The request is larger than {MOST_BYTES >> 20} MB.", "too_large")
    except TimeoutError:
        raise Refused(408, f"The request took longer than {PATIENCE:g} s to arrive.", "timeout") from None
    return bytes(found)


class _Words:
    """One answer in OpenAI's words."""

    def __init__(self, chat: bool, model: str) -> None:
        self._chat = chat
        self._kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def opening(self) -> str:
        """Who speaks."""
        return self._part({"role": "assistant", "content": ""}, None) if self._chat else ""

    def piece(self, told: Mapping[str, Any]) -> str:
        """Text, and why it ended where it did."""
        ended = reason(told["reason"]) if "reason" in told else None
        if not self._chat:
            return self._event([{"index": 0, "text": told["text"], "logprobs": None, "finish_reason": ended}])
        said = self._part({"content": told["text"]}, None) if told["text"] else ""
        return said + (self._part({}, ended) if ended else "")

    def counts(self, told: Mapping[str, Any]) -> str:
        """How many tokens it took."""
        return self._event([], usage=_usage(told))

    def whole(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """All of it at once."""
        said: dict[str, Any] = {"index": 0, "finish_reason": reason(told["reason"]), "logprobs": None}
        said |= {"message": {"role": "assistant", "content": told["whole"]}} if self._chat else {"text": told["whole"]}
        return {**self._head, "object": self._kind, "choices": [said], "usage": _usage(told)}

    def _part(self, delta: Mapping[str, Any], ended: str | None) -> str:
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        kind = f"{self._kind}.chunk" if self._chat else self._kind
        return _event({**self._head, "object": kind, "choices": choices, **more})


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _usage(told: Mapping[str, Any]) -> dict[str, int]:
    prompt, answer = told["prompt_tokens"], told["answer_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


Ingress = serve.ingress(app)(Front)  # last: Ray copies the routes, and all that they name must be there
