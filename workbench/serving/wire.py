"""OpenAI's interface as a service speaks it: what may be asked, what is answered, and how it is refused.

Source: https://platform.openai.com/docs/api-reference, and `ignore_eos` as in vLLM and llama.cpp.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workbench.core.errors import Busy, Closed, InvalidInput, NotAvailable, OutOfMemory, WorkbenchError

ANSWERS = "answers"  # what Ray Serve calls the replicas
REPLICA = "x-workbench-replica"  # header that says which process answered
DEFAULT_TOKENS = 512  # of an answer, where a request names no limit
MOST_STOPS, LONGEST_STOP = 16, 200
STATUS = {Busy: 429, NotAvailable: 502, OutOfMemory: 503, Closed: 503, InvalidInput: 400}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
NEUTRAL = {  # what is accepted where it changes nothing, and refused in words where it would
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


class Refused(Exception):
    """A request that is not answered, in the shape of OpenAI's errors.

    Attributes:
        status: of HTTP.
        headers: that go with it.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message.encode(errors="replace").decode())  # half characters cannot be sent back
        self.status, self.code, self.param = status, code, param
        self.headers = {"Retry-After": "1"} if status == 429 else {}

    @classmethod
    def of(cls, kind: str, message: str) -> "Refused":
        """One of the workbench's own errors, by the name of its class."""
        status = next((code for error, code in STATUS.items() if error.__name__ == kind), 500)
        long = status == 400 and "holds" in message and "new ones were asked for" in message
        return cls(status, message, "context_length_exceeded" if long else None)

    @property
    def shape(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = TYPES.get(self.status, usual)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Ask(BaseModel):
    """A request on its way from the front to a replica.

    Attributes:
        messages: the conversation, as OpenAI writes it.
        plain: whether its text is continued without a chat template.
        decoding: settings of this request.
        stops: texts that end the answer.
        form: a JSON schema that the answer must fit, if any.
        salt: whose request it is.
        session: requests with the same one begin alike, or belong together.
    """

    messages: list[dict[str, Any]]
    plain: bool = False
    decoding: dict[str, Any] = {}
    stops: list[str] = []
    form: str | None = None
    salt: str = ""
    session: str = ""

    @property
    def text(self) -> str:
        """All that is asked, in one text: two conversations that begin alike have texts that begin alike."""
        return "\n".join(f"{each.get('role')}: {each.get('content')}" for each in self.messages)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class Body(BaseModel):
    """What both kinds of request may say; what is not known is ignored, what is known and not done is refused."""

    model_config = ConfigDict(extra="allow")
    model: str | None = Field(default=None, max_length=500)
    max_tokens: int | None = Field(default=None, ge=1, le=100_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=100_000)
    temperature: float | None = Field(default=None, ge=0.0, le=5.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[str] | None = Field(default=None, max_length=MOST_STOPS)
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    user: str | None = Field(default=None, max_length=500)
    ignore_eos: bool | None = False

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("stop")
    @classmethod
    def _short(cls, given: list[str] | None) -> list[str] | None:
        if any(not each or len(each) > LONGEST_STOP for each in given or []):
            raise ValueError(f"a text that ends an answer has 1 to {LONGEST_STOP} characters")
        return given

    @model_validator(mode="after")
    def _neutral(self) -> "Body":
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL and value not in NEUTRAL[name]:
                raise ValueError(f"'{name}' is not done by this service: leave it out")
        return self

    @property
    def usage(self) -> bool:
        """Whether a stream ends with its counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def ask(self) -> Ask:
        """The request as a replica reads it."""
        decoding = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        chosen = {name: value for name, value in decoding.items() if value is not None}
        chosen["max_new_tokens"] = self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS
        if self.ignore_eos:
            chosen["endless"] = True
        return Ask(messages=[], decoding=chosen, stops=self.stop or [], salt=self.user or "")


class _Schema(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class _Format(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "_Format":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a response_format of type json_schema needs json_schema.schema")
        return self

    @property
    def form(self) -> str | None:
        """The schema, as text."""
        if self.type == "text":
            return None
        return json.dumps(self.json_schema.schema_ if self.json_schema else {"type": "object"})


class Chat(Body):
    """A request of ``/v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=10_000)
    response_format: _Format | None = None

    def ask(self) -> Ask:
        """The request as a replica reads it; a conversation's session is how it begins."""
        form = self.response_format.form if self.response_format else None
        first = next((n for n, each in enumerate(self.messages) if each.get("role") == "user"), 0)
        begins = str([each.get("content") for each in self.messages[: first + 1]])
        return super().ask().model_copy(update={"messages": self.messages, "form": form, "session": begins})


class Completion(Body):
    """A request of ``/v1/completions``."""

    prompt: str = Field(min_length=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _single(cls, given: Any) -> Any:
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
            return given[0]
        if not isinstance(given, str):
            raise ValueError("a prompt is one text here: ask once for each, and send no token ids")
        return given

    def ask(self) -> Ask:
        """The request as a replica reads it."""
        messages = [{"role": "user", "content": self.prompt}]
        return super().ask().model_copy(update={"messages": messages, "plain": True, "session": self.prompt})


def parsed(kind: type[Body], body: bytes) -> Body:
    """A request from what was sent.

    Raises:
        Refused: it is no JSON, or not a request.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON: send an object such as OpenAI's clients do.") from None
    if not isinstance(found, Mapping):
        raise Refused(400, "The body is not a JSON object: send one such as OpenAI's clients do.")
    try:
        return kind.model_validate(found)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise Refused(400, "The body is nested too deep.") from None
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or None
        said = str(first["msg"]).removeprefix("Value error, ")
        raise Refused(400, f"{name or 'The request'}: {said[:400]}.", param=name) from None


def refused(error: WorkbenchError) -> tuple[str, str]:
    """An error on its way from a replica: the name of the kind that decides its status, and what it says."""
    kind = next((each for each in STATUS if isinstance(error, each)), WorkbenchError)
    return kind.__name__, str(error)


def reason(said: str) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "length" if said == "length" else "stop"
