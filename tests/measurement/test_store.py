"""Another place for passages: a server that is asked over HTTP takes the place of the file."""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

import workbench as wb
from workbench.answering.request import Passage
from workbench.core.errors import InvalidInput
from workbench.retrieval.documents import Document
from workbench.retrieval.index import STORES, Index
from workbench.steps import retrieve


class Remote:
    """A store that a server holds: every call is one request."""

    encoder = None

    def __init__(self, address: str) -> None:
        self.address = address

    def _ask(self, verb: str, *given: object) -> object:
        with urlopen(self.address, data=json.dumps([verb, *given]).encode(), timeout=30) as answer:
            return json.load(answer)

    @property
    def state(self) -> str:
        return self._ask("state")

    def ids(self) -> list[str]:
        return self._ask("ids")

    def stale(self, documents: list[Document]) -> list[str]:
        return self._ask("stale", [asdict(each) for each in documents])

    def update(self, documents: list[Document], progress: wb.Progress | None = None) -> int:
        return self._ask("update", [asdict(each) for each in documents])

    def search(self, question: str, count: int, method: str) -> list[Passage]:
        return [Passage(**each) for each in self._ask("search", question, count, method)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    index, asked = Index(tmp_path / "served.sqlite"), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            verb, *given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(verb)
            match verb:
                case "state":
                    found = index.state
                case "ids":
                    found = index.ids()
                case "search":
                    found = [asdict(each) for each in index.search(*given)]
                case _:
                    found = getattr(index, verb)([Document(**each) for each in given[0]])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
    assert {"state", "update", "search"} <= set(asked)


def test_a_server_takes_the_place_of_the_file(base: wb.Variant, server: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(STORES, "served", lambda name, words, overlap, encoder: Remote(server))
    (tmp_path / "rain.txt").write_text("Rain falls before noon.")
    (tmp_path / "boats.txt").write_text("A ferry has twelve seats.")
    step = retrieve.Retrieve(documents=str(tmp_path), method="bm25", top_k=1, store="served")
    child = base.apply(step)
    here = base.apply(step.model_copy(update={"store": "sqlite"}))
    question = "How many seats does the ferry have?"
    assert child.rewritten(question).passages == here.rewritten(question).passages
    assert child.rewritten(question).passages[0].id == "boats.txt"
    (tmp_path / "boats.txt").write_text("A ferry has thirteen seats.")
    assert child.stages[-1].stale() == ["boats.txt"]


def test_a_store_that_is_not_known(base: wb.Variant, tmp_path: Path) -> None:
    (tmp_path / "rain.txt").write_text("Rain falls before noon.")
    with pytest.raises(InvalidInput, match="no store 'nowhere'"):
        base.apply(retrieve.Retrieve(documents=str(tmp_path), store="nowhere"))
