"""The official `openai` client, kept within bounds: what an endpoint sends is text from outside.

Imported where it is used: the library comes with an extra.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, finalize

import httpx2
import openai

from workbench.core.errors import Busy, Closed, InvalidInput, NotAvailable, WorkbenchError

NO_KEY = "none"  # what is sent where there is none: the library wants one
CONNECT = 10.0  # seconds
MOST_BYTES = 32 << 20  # of one answer, as sent
LONGEST_SAID = 200  # characters of an error that are passed on


@dataclass(frozen=True)
class Address:
    """Where an endpoint is and how it is asked.

    Attributes:
        url: of the interface, such as ``http://localhost:8000/v1``.
        key: never shown.
        timeout: seconds that a whole answer may take.
        retries: of a request that was refused for now or failed; it waits as the answer's headers say.
    """

    url: str
    key: str = field(repr=False)
    timeout: float
    retries: int

    @property
    def options(self) -> dict[str, Any]:
        """What both kinds of client take."""
        return {
            "base_url": self.url,
            "api_key": self.key,
            "timeout": httpx2.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
            "max_retries": self.retries,
            "default_headers": {
                # What is unpacked here could be any number of times larger than what was sent.
                "Accept-Encoding": "identity",
                # From variables that only OpenAI itself should be told.
                "OpenAI-Organization": openai.omit,
                "OpenAI-Project": openai.omit,
            },
        }


class Clients:
    """The connections to one endpoint: one set for callers that wait, one for each event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.closed = False
        self._lock = threading.Lock()
        self._plain: openai.OpenAI | None = None
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = WeakKeyDictionary()

    @property
    def plain(self) -> openai.OpenAI:
        """For callers that wait."""
        with self._lock:
            self._check()
            if self._plain is None:
                bounded = openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_bound]})
                self._plain = openai.OpenAI(http_client=bounded, **self.address.options)
                finalize(self, self._plain.close)
            return self._plain

    async def running(self) -> openai.AsyncOpenAI:
        """For the event loop that runs; closed with it."""
        loop = asyncio.get_running_loop()
        self._check()
        if loop not in self._loops:
            opened = _lasting(self.address)
            _open.setdefault(loop, []).append(opened)
            self._loops[loop] = await anext(opened)
        return self._loops[loop]

    def close(self) -> None:
        """Close what callers that wait hold; what event loops hold ends with them."""
        with self._lock:
            self.closed = True
            if self._plain is not None:
                self._plain.close()

    def _check(self) -> None:
        if self.closed:
            raise Closed(f"The connection to {self.address.url} was closed: connect to it again.")


# What was opened in a loop stays until the loop closes it: once dropped, it would be closed only if there is time left.
_open: WeakKeyDictionary[asyncio.AbstractEventLoop, list[AsyncGenerator[openai.AsyncOpenAI, None]]] = (
    WeakKeyDictionary()
)


async def _lasting(address: Address) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    """A client that an event loop closes when it ends, as it closes every generator that was begun in it."""
    bounded = openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        event_hooks={"response": [_abound]},
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
    )
    async with openai.AsyncOpenAI(http_client=bounded, **address.options) as client:
        yield client


class _Counted(httpx2.SyncByteStream):
    """Bytes as they come, up to a bound."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left = MOST_BYTES
        for each in self._stream:
            left -= len(each)
            _check_left(left)
            yield each

    def close(self) -> None:
        self._stream.close()


class _ACounted(httpx2.AsyncByteStream):
    """The same for an event loop."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MOST_BYTES
        async for each in self._stream:
            left -= len(each)
            _check_left(left)
            yield each

    async def aclose(self) -> None:
        await self._stream.aclose()


def _check_left(left: int) -> None:
    if left < 0:
        raise NotAvailable(f"The endpoint sent more than {MOST_BYTES >> 20} MB for one answer: the rest was not read.")


def _bound(response: httpx2.Response) -> None:
    _check_plain(response)
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Counted(response.stream)


async def _abound(response: httpx2.Response) -> None:
    _check_plain(response)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _ACounted(response.stream)


def _check_plain(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise NotAvailable("The endpoint sent packed bytes where plain ones were asked for: they were not read.")


@contextmanager
def sentences(address: Address, model: str) -> Iterator[None]:
    """Say what went wrong with an endpoint in one sentence each, without the key.

    Raises:
        InvalidInput: it refused the key, the model or the request.
        Busy: it has too much to do.
        NotAvailable: it cannot be reached, took too long, failed, or speaks something else.
    """
    try:
        yield
    except (WorkbenchError, GeneratorExit, asyncio.CancelledError):
        raise
    except Exception as error:
        raise _sentence(error, address, model) from None


def _sentence(error: Exception, address: Address, model: str) -> WorkbenchError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WorkbenchError):
            return cause
        cause = cause.__cause__ or cause.__context__
    said, url = safe(told(error), address.key), address.url
    match error:
        case openai.APITimeoutError():
            return NotAvailable(
                f"{url} did not answer within {address.timeout:g} s: see whether it has too much to do, or give it "
                "longer with connect(..., timeout=...)."
            )
        case openai.APIConnectionError():
            why = safe(str(error.__cause__ or error), address.key)
            return NotAvailable(f"{url} cannot be reached ({why}): see that the service runs and the address is right.")
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return InvalidInput(f"{url} refused the key ({said}): give the right one with connect(..., key=...).")
        case openai.NotFoundError():
            return InvalidInput(f"{url} does not know '{model}' or the address is not right: it said {said}.")
        case openai.RateLimitError():
            return Busy(f"{url} has too much to do ({said}): ask again later or less often.")
        case openai.APIStatusError() if error.status_code < 400:
            return NotAvailable(f"{url} points to another address: connect to that one, if you trust it.")
        case openai.APIStatusError() if error.status_code < 500:
            return InvalidInput(f"{url} refused the request: {said}.")
        case openai.APIStatusError():
            return NotAvailable(f"{url} failed with status {error.status_code}: {said}.")
        case openai.APIError() if type(error) is openai.APIError:  # an event of the stream that says so
            return NotAvailable(f"{url} broke off: {said}.")
        case httpx2.TransportError():
            return NotAvailable(f"{url} broke off ({type(error).__name__}: {said}): ask again.")
    return NotAvailable(
        f"{url} sent something that is not OpenAI's interface ({type(error).__name__}: {said}): see that the address "
        "ends as its documentation says, often in /v1."
    )


def told(error: Exception) -> str:
    """What a service says of an error, in OpenAI's shape or in that of FastAPI, which others have."""
    body = getattr(error, "body", None)
    detail = body.get("detail") if isinstance(body, dict) else None
    return str(detail or getattr(error, "message", error))


def safe(text: str, key: str = "", longest: int = LONGEST_SAID) -> str:
    """A text from outside on one line, cut, without control characters and without the key."""
    if key and key != NO_KEY:
        text = text.replace(key, "***")
    line = " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * longest]).split())
    return line[:longest].rstrip(". ") or "nothing"
