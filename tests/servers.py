"""Servers that tests talk to: one that says whatever a test tells it to, over plain HTTP."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"object": "list", "data": [{"id": "liar", "object": "model"}]}
Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says; what was asked is kept."""

    protocol_version = "HTTP/1.1"
    reply: Reply
    models: Any = MODELS
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self.send(200, json.dumps(self.models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body | {"headers": {name.lower(): value for name, value in self.headers.items()}})
        type(self).reply(self, body)

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> None:
        """An answer in events, of which more follow; it ends with the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, text: str | None = None, reason: str | None = None, **more: Any) -> None:
        """One event of a chat's answer."""
        choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]
        self.wfile.write(f"data: {json.dumps({'choices': choices, **more})}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@contextmanager
def says(reply: Reply, models: Any = MODELS) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers so: its address, and what it was asked."""
    kind = type("Told", (Handler,), {"reply": staticmethod(reply), "models": models, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # of clients that leave in the middle, as some should
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", kind.asked
        finally:
            server.shutdown()
