"""A model behind an address: any service with OpenAI's interface answers, and is compared, like a variant."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workbench.answering.request import Generation, Piece, Prompt, Request
from workbench.core.errors import InvalidInput
from workbench.core.optional import library
from workbench.runtime.decoding import Decoding
from workbench.serving.heard import Heard
from workbench.serving.wire import REPLICA

if TYPE_CHECKING:
    from workbench.serving.client import Clients

ELSEWHERE = (
    "It answers outside this process: times include the way there, and what it runs on, how many share it and its "
    "memory are not known here; perplexity and KL cannot be measured, since it gives no likelihoods."
)
SHOWN = 10  # models that are named
UNKNOWN = re.compile("unsupported|unrecogni|unknown|not permitted|not supported|extra|unexpected", re.IGNORECASE)
EXTENSIONS = ("ignore_eos", "stream_options", "max_tokens")  # what some services refuse


@dataclass(frozen=True, eq=False, repr=False)
class Endpoint:
    """A model that a service answers with, through OpenAI's interface. Made by `connect`.

    Attributes:
        name: what it is called in tables and charts.
        model: what the service calls it.
        source: the service's address.
        decoding: how tokens are chosen unless a request says otherwise.
        prices: of a million tokens of prompt and of answer, in whatever currency, where they are known.
        notes: what a reader of its results should know, in sentences.
        more: what every request says beside that, such as `stop` or `response_format`.
    """

    name: str
    model: str
    source: str
    _clients: "Clients"
    decoding: Decoding = field(default_factory=Decoding)
    prices: tuple[float, float] | None = None
    notes: tuple[str, ...] = (ELSEWHERE,)
    more: Mapping[str, Any] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)  # learnt of the service, by all that bear its name

    @property
    def closed(self) -> bool:
        """Whether its connections were closed."""
        return self._clients.closed

    def under(self, name: str) -> "Endpoint":
        """The same endpoint under another name."""
        return replace(self, name=name)

    def stream(self, prompt: Prompt, *, fresh: bool = False, **decoding: Any) -> Iterator[Piece]:
        """Answer piece by piece, a piece being what the service sends at once; the last brings the whole answer.

        Args:
            prompt: the user's text, or messages with role and content.
            fresh: ignored: whether the service remembers answers is not known here.
            decoding: `Decoding` settings for this request.

        Raises:
            InvalidInput: an empty prompt, a setting out of range, or what the service refuses.
            Busy: the service has too much to do, after it was asked again as its headers say.
            NotAvailable: it cannot be reached, takes too long, fails, or sends something else.
        """
        request, settings = Request.of(prompt), self.decoding.but(**decoding)
        with self._sentences():
            heard = self._heard(request, settings)
            while True:
                try:
                    messages = self._clients.plain.chat.completions.create(**self._asked(request, settings))
                    break
                except Exception as error:
                    self._learn(error)
            heard.replica = messages.response.headers.get(REPLICA, "")[:40]
            with closing(messages):
                for message in messages:
                    if piece := heard.take(message):
                        yield piece
            yield heard.answer()

    def generate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece; takes and raises what `stream` does."""
        *_, last = self.stream(prompt, **decoding)
        assert last.answer is not None
        return last.answer

    async def astream(self, prompt: Prompt, **decoding: Any) -> AsyncIterator[Piece]:
        """Answer piece by piece beside other requests; takes and raises what `stream` does."""
        decoding.pop("fresh", None)
        request, settings = Request.of(prompt), self.decoding.but(**decoding)
        with self._sentences():
            heard = self._heard(request, settings)
            while True:
                try:
                    client = await self._clients.running()
                    messages = await client.chat.completions.create(**self._asked(request, settings))
                    break
                except Exception as error:
                    self._learn(error)
            heard.replica = messages.response.headers.get(REPLICA, "")[:40]
            async with aclosing(messages.response):
                async for message in messages:
                    if piece := heard.take(message):
                        yield piece
            yield heard.answer()

    async def agenerate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece beside other requests; takes and raises what `stream` does."""
        last = None
        async for piece in self.astream(prompt, **decoding):
            last = piece.answer
        assert last is not None
        return last

    def impatient(self) -> "Endpoint":
        """The same by connections of its own, and never asked again by itself: each refusal is heard."""
        from workbench.serving.client import Clients

        return replace(self, _clients=Clients(replace(self._clients.address, retries=0)))

    def close(self) -> None:
        """Close the connections; the service goes on."""
        self._clients.close()

    def _heard(self, request: Request, settings: Decoding) -> Heard:
        return Heard(request, settings, self._clients.address.timeout)

    def _asked(self, request: Request, settings: Decoding) -> dict[str, Any]:
        """The request as the interface wants it, without what this service refused before."""
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": each.role, "content": each.content} for each in request.written()],
            "temperature": settings.temperature,
            "stream": True,
        }
        length = "max_completion_tokens" if "max_tokens" in self._refused else "max_tokens"
        asked[length] = settings.max_new_tokens
        if settings.temperature:
            asked |= {"top_p": settings.top_p, "seed": settings.seed}
        if "stream_options" not in self._refused:
            asked["stream_options"] = {"include_usage": True}
        if settings.endless and "ignore_eos" not in self._refused:
            asked["extra_body"] = {"ignore_eos": True}
        return asked | dict(self.more)

    def _learn(self, error: Exception) -> None:
        """Leave out what the service refuses by name, and let the request be asked again; any other error is raised."""
        from workbench.serving.client import told

        if getattr(error, "status_code", None) not in (400, 422):
            raise error
        said = told(error)
        unknown = getattr(error, "param", None) or (said if UNKNOWN.search(said) else "")
        named = next((each for each in EXTENSIONS if each in unknown and each not in self._refused), None)
        if named is None:
            raise error
        self._refused.add(named)

    def _sentences(self) -> Any:
        from workbench.serving.client import sentences

        return sentences(self._clients.address, self.model)

    def __repr__(self) -> str:
        return f"<Endpoint {self.name!r}: {self.model!r} at {self.source}{', closed' if self.closed else ''}>"


def connect(
    url: str,
    model: str | None = None,
    key: str | None = None,
    *,
    name: str | None = None,
    prices: tuple[float, float] | None = None,
    timeout: float = 120.0,
    retries: int = 2,
) -> Endpoint:
    """Connect to a service with OpenAI's interface: another engine, another machine, or one's own `serve`.

    Args:
        url: of the interface, such as ``http://localhost:8000/v1``.
        model: what the service calls it; may be left out where the service has only one.
        key: sent to this address only; never shown, stored or taken from the environment.
        name: in tables and charts.
        prices: of a million tokens of prompt and of answer; what answers cost is compared then.
        timeout: seconds that a whole answer may take.
        retries: of a request that failed or was refused for now, after as long as the service's headers say.

    Raises:
        InvalidInput: no such address or model, or the key was refused.
        Busy: the service has too much to do to say whether it has the model.
        NotAvailable: the service cannot be reached, or speaks something else.
    """
    parts = urlsplit(url if isinstance(url, str) else "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"connect() takes an address such as http://localhost:8000/v1, not '{str(url)[:80]}'.")
    if parts.username or parts.password:
        raise InvalidInput("The address holds a password: give it as key=..., which is never shown.")
    if prices is not None and (len(prices) != 2 or not all(0 <= each < 1e9 for each in prices)):
        raise InvalidInput("prices are two numbers of at least 0: of a million tokens of prompt and of answer.")
    if not timeout > 0 or retries < 0:
        raise InvalidInput("timeout is a number of seconds above 0, and retries is at least 0.")
    library("openai", "Talking to an endpoint", extra="endpoint")
    from workbench.serving.client import NO_KEY, Address, Clients

    clients = Clients(Address(url.rstrip("/"), key or NO_KEY, float(timeout), retries))
    listed = _listed(clients, model)
    found = model or _only(clients, listed)
    endpoint = Endpoint(
        name=name or f"{found.rpartition('/')[2]} at {parts.netloc}",
        model=found,
        source=clients.address.url,
        _clients=clients,
        prices=prices,
    )
    if found not in listed:
        _try(endpoint, listed)
    return endpoint


def _listed(clients: "Clients", wanted: str | None) -> list[str]:
    """The models that the service lists; none where it has no list, or fails to make it and one is named."""
    import openai

    from workbench.serving.client import sentences

    with sentences(clients.address, wanted or "a model"):
        try:
            listed = getattr(clients.plain.models.list(), "data", None)
        except openai.NotFoundError:
            return []
        except openai.InternalServerError:
            if wanted is None:
                raise
            return []
        if not isinstance(listed, list) or not all(isinstance(getattr(each, "id", None), str) for each in listed):
            raise TypeError("its list of models is none")
        return [str(each.id) for each in listed]


def _only(clients: "Clients", listed: Sequence[str]) -> str:
    if len(listed) == 1:
        return listed[0]
    url = clients.address.url
    if not listed:
        raise InvalidInput(f"{url} lists no models: name one with model=... .")
    raise InvalidInput(f"{url} has several models: name one with model=...: {_names(listed)}.")


def _try(endpoint: Endpoint, listed: Sequence[str]) -> None:
    """Ask for a token.

    Lists leave out what their services have: that of `transformers serve` has the models in the hub's cache alone, and
    fails without one.
    """
    try:
        next(endpoint.stream("Hi", max_new_tokens=1))
    except InvalidInput as error:
        raise InvalidInput(f"{error} Its list of models has {_names(listed)}.") from None


def _names(listed: Sequence[str]) -> str:
    from workbench.serving.client import safe

    return ", ".join(safe(each, longest=80) for each in listed[:SHOWN]) or "none"
