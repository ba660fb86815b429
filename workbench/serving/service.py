"""A variant as a service with OpenAI's interface, by as many processes as it takes, on Ray Serve."""

import atexit
import itertools
import os
import secrets
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.core import cluster, files
from workbench.core.errors import InvalidInput, NotAvailable, WorkbenchError, first_line
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.serving.application import Application
from workbench.serving.endpoint import Endpoint, connect
from workbench.serving.outline import speaker_of
from workbench.serving.replica import ROWS, Source
from workbench.serving.shares import check_shares, threads_of
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas

LOCAL = ("127.0.0.1", "localhost", "::1")  # addresses that only this machine reaches
PORT = 8000
SHORTEST_KEY = 16
_numbers = itertools.count(1)


@dataclass(eq=False, repr=False)
class Service:
    """A service that runs. Made by `serve`; it ends with this process, or by `stop`.

    Attributes:
        name: of Ray Serve's application.
        model: what clients call the model.
        url: of the interface.
        policy: how a replica is chosen for a request.
        replicas: how many there are, or should be; the fewest and the most where that follows the load.
    """

    name: str
    model: str
    url: str
    policy: str
    replicas: int | tuple[int, int]
    _application: Application = field(repr=False)
    _folders: list[Path] = field(default_factory=list)
    stopped: bool = False

    def endpoint(self, **options: Any) -> Endpoint:
        """A connection to it, which is compared, talked to and put under load like any other.

        Args:
            options: of `connect`.
        """
        self._check()
        return connect(self.url, self.model, self._application.key or None, **{"name": self.name} | options)

    def scale(self, replicas: int | tuple[int, int]) -> None:
        """Have another number of replicas, or from fewer to more; those that go end what they have begun.

        Raises:
            InvalidInput: fewer than one.
        """
        self._check()
        self._application = self._application.but(replicas=replicas)
        self._run()

    def update(self, what: Variant | Endpoint | str | Path) -> None:
        """Serve something else under the same name, one replica after another: no request fails.

        Raises:
            InvalidInput: it is neither a variant nor an endpoint nor a path.
            NotAvailable: it cannot be served; the service goes on as it was.
        """
        self._check()
        now = self._application.source
        _check_what(what, now.ranks)
        kept = {"threads": now.threads, "ranks": now.ranks, "rows": now.rows, "timeout": now.timeout}
        source, folder = _source(what, self.model, **kept)
        before, self._application = self._application, self._application.but(source=source)
        try:
            self._run()
        except WorkbenchError:
            self._application = before
            _remove(folder)
            self._run()
            raise
        self._folders += [folder] if folder else []
        while len(self._folders) > 1:
            _remove(self._folders.pop(0))

    def status(self) -> dict[str, Any]:
        """What each replica has done and does now, as the service itself says."""
        self._check()
        import httpx2

        headers = {"Authorization": f"Bearer {self._application.key}"} if self._application.key else {}
        try:
            answer = httpx2.get(
                self.url.removesuffix("/v1") + "/replicas", headers=headers, timeout=10, trust_env=False
            )
            return dict(answer.raise_for_status().json())
        except (httpx2.HTTPError, ValueError) as error:
            raise NotAvailable(
                f"'{self.name}' does not answer ({first_line(error)}): stop and start it again."
            ) from None

    def table(self) -> "pandas.DataFrame":
        """One row a replica: in flight, done, failed, and percentiles in seconds."""
        import pandas

        rows = []
        for name, seat in self.status()["replicas"].items():
            times = {f"{part}_{p}": value for part in ("ttft", "latency") for p, value in seat.pop(part).items()}
            rows.append({"replica": name, **seat, **times})
        return pandas.DataFrame(rows)

    def kill(self, replica: str) -> None:
        """End a replica's process at once, to see what becomes of its requests; Ray starts another.

        Args:
            replica: as `status` calls it.

        Raises:
            InvalidInput: there is no such replica, or it is on another machine.
        """
        if not self._application.local:
            raise InvalidInput("Replicas of this cluster may be on other machines: end them with Ray's own tools.")
        seat = self.status()["replicas"].get(replica)
        if seat is None or seat["lost"] or not seat["process"]:
            raise InvalidInput(f"'{self.name}' has no replica '{replica}' that has answered: see status().")
        try:
            os.kill(seat["process"], signal.SIGKILL)
        except ProcessLookupError:
            raise InvalidInput(f"Replica '{replica}' has ended already, or is on another machine.") from None

    def stop(self) -> None:
        """End it; requests that were begun are answered first."""
        if self.stopped:
            return
        self.stopped = True
        import ray
        from ray import serve

        if ray.is_initialized():
            serve.delete(self.name)
        for folder in self._folders:
            _remove(folder)

    def _check(self) -> None:
        if self.stopped:
            raise InvalidInput(f"'{self.name}' was stopped: start it again with serve().")

    def _run(self) -> None:
        self._application.run(self.name)
        self.replicas = self._application.replicas

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        many = " to ".join(map(str, sorted(set(self._application.bounds))))
        state = "stopped" if self.stopped else f"{many} replicas, {self.policy}"
        return f"<Service {self.name!r}: {self.model!r} at {self.url}, {state}>"


@watched
def serve(
    what: Variant | Endpoint | str | Path,
    *,
    replicas: int | tuple[int, int] = 1,
    policy: str = "power of two",
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    key: str | None = None,
    threads: int | None = None,
    ranks: int = 1,
    rows: int = ROWS,
    waiting: int = 100,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Service:
    """Answer clients of OpenAI's interface with a variant, in processes of their own.

    Args:
        what: a variant, an export or a model's folder, a .gguf file that llama.cpp runs, or an endpoint to pass on to.
        replicas: processes that answer, each with the whole model; where two numbers are given, the fewest and the
            most, how many there are follows the load.
        policy: how one is chosen for a request: "power of two", "round robin", "consistent hash" (of how a conversation
            begins), or "prefix aware".
        name: what clients call the model; by default the variant's name.
        host: address that it listens on. Any but this machine's own needs a key.
        port: of HTTP; 0 takes one that is free. A second service of this process has the same port, under its name.
        key: that clients must give, as they give one to OpenAI.
        threads: of each replica on a CPU; by default they share the processor's cores.
        ranks: processes that each replica's matrices are shared among, as `shard` does it; 1 for the replica's own.
        rows: requests that one replica answers at once.
        waiting: further ones that wait; beyond these they are refused with status 429.
        timeout: seconds that an answer may take.
        progress: a cancel is heard before the replicas start, and once they have.

    Raises:
        NotAvailable: Ray is not installed, or the replicas cannot start.
        InvalidInput: a setting is out of range, the port is taken, or a key is missing.
    """
    if host not in LOCAL and not key:
        raise InvalidInput(f"A service on {host} can be reached by other machines: give it a key with key=... .")
    if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        raise InvalidInput(
            f"A key has at least {SHORTEST_KEY} plain characters, such as secrets.token_urlsafe() makes."
        )
    progress = progress or Progress()
    application = Application(
        Source("", "", ranks=ranks), replicas, policy, key or "", rows, waiting, timeout, "/", True
    )
    each = threads or max(1, torch.get_num_threads() // application.bounds[1])
    _check_what(what, ranks)
    address, ours = cluster.start()
    if ranks > 1 and ours and not isinstance(what, Endpoint):
        threads_of(speaker_of(what)[1], ranks * application.bounds[1])
    place = _listen(address, host, port)
    source, folder = _source(what, name, threads=each, ranks=ranks, rows=rows, timeout=timeout)
    number = next(_numbers)
    title = f"service-{number}" if ours else f"service-{secrets.token_hex(4)}"  # others may serve on that cluster, too
    prefix = "/" if ours and number == 1 else f"/{title}"
    application = application.but(source=source, prefix=prefix, local=ours)
    service = Service(title, source.name, f"{place}{prefix.rstrip('/')}/v1", policy, replicas, application)
    if folder is not None:
        service._folders.append(folder)
    try:
        progress.check()
        service._run()
        progress.check()
    except BaseException:
        service.stop()
        raise
    atexit.register(service.stop)
    return service


_listening: dict[str, tuple[str, int]] = {}  # by the cluster's address


def _remove(folder: Path | None) -> None:
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _listen(address: str, host: str, port: int) -> str:
    """Where Ray's HTTP proxy listens, started if it does not yet; one serves all services of a cluster."""
    if address not in _listening:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((host, port))
            except (OSError, OverflowError) as error:
                raise InvalidInput(f"Port {port} of {host} cannot be used ({error}): name another.") from None
            port = tried.getsockname()[1]
        from ray import serve

        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 65},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        _listening[address] = host, port
    there, taken = _listening[address]
    if host != there or port not in (0, PORT, taken):
        raise InvalidInput(
            f"The services of this process listen on port {taken} of {there} already: name that host, or none, and no "
            "other port; this one gets a path of its own there."
        )
    port = taken
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{port}"


def _check_what(what: Any, ranks: int) -> None:
    if isinstance(what, str | Path):
        if not files.home(what).exists():
            raise InvalidInput(f"There is nothing at '{what}': name an export, a model's folder or a .gguf file.")
    elif not isinstance(what, Variant | Endpoint):
        raise InvalidInput(f"serve() takes a variant, an endpoint or a path, not {type(what).__name__}.")
    if ranks != 1:
        if isinstance(what, Endpoint) or (not isinstance(what, Variant) and files.home(what).suffix == ".gguf"):
            raise InvalidInput("Ranks share the matrices of a variant or a model's folder: leave ranks out here.")
        check_shares(speaker_of(what)[0].model, ranks)


def _source(what: Any, name: str | None, **common: Any) -> tuple[Source, Path | None]:
    """What a replica opens, and the folder that was made for it."""
    if isinstance(what, Endpoint):
        address = what._clients.address
        return Source(address.url, name or what.model, model=what.model, key=address.key, **common), None
    if isinstance(what, Variant):
        home = files.cache_folder() / "serving"
        home.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=home))
        try:
            what.save(folder / "variant")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        dtype = str(what.dtype).removeprefix("torch.")
        source = Source(str(folder / "variant"), name or what.name, str(what.device), dtype, **common)
        return source, folder
    path = files.home(what)
    device = "cuda" if torch.cuda.is_available() and path.suffix != ".gguf" else "cpu"
    return Source(str(path.resolve()), name or path.stem, device, **common), None
