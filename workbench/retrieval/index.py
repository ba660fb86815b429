"""An index of documents in one SQLite file: passages, their vectors, and what they were made of.

SQLite is in Python itself, writes all or nothing, and keeps two notebooks apart. Its extension for vectors (sqlite-vec)
cannot be loaded by many builds of Python, this project's own among them, so vectors are stored as plain bytes, and the
search is one matrix product over all of them, exact (`workbench.retrieval.ranking`).
"""

import hashlib
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from workbench.answering.request import Passage
from workbench.core.errors import Corrupt, InvalidInput, WorkbenchError
from workbench.core.files import cache_folder
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.retrieval.documents import Document, passages
from workbench.retrieval.embedding import Encoder, Vectors
from workbench.retrieval.ranking import Method, Searcher, Store

FORMAT = "2"
KEPT = 4  # searchers in memory
PATIENCE = 60.0  # seconds that a write of another process is waited for; it takes a second or so
Row = tuple[str, str, str, bytes]  # document, passage, text, vector
TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (id TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS passages (
    number INTEGER PRIMARY KEY, document TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL, vector BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS of_document ON passages (document);
"""


class Index:
    """Passages of documents and, if there is an encoder, their vectors.

    Attributes:
        path: of the file.
        words: most in a passage.
        overlap: of one passage and the next, in words.

    Raises:
        InvalidInput: the file is an index of another version or of other settings.
        Corrupt: the file is damaged or no index.
    """

    def __init__(self, path: Path, words: int = 120, overlap: int = 20, encoder: Encoder | None = None) -> None:
        self.path, self.words, self.overlap, self.encoder = path, words, overlap, encoder
        settings = {
            "format": FORMAT,
            "words": str(words),
            "overlap": str(overlap),
            "encoder": encoder.name if encoder else "",
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as base:
            if not _facts(base):
                with _writing(base):
                    for statement in TABLES.split(";"):
                        base.execute(statement)
                    base.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", (settings | {"state": ""}).items())
            found = _facts(base)
        different = [key for key, value in settings.items() if found.get(key) != value]
        if different:
            key = different[0]
            raise InvalidInput(
                f"The index '{path}' has {key} '{found.get(key, 'none')}', not '{settings[key]}': "
                "delete it or use another file."
            )

    @property
    def state(self) -> str:
        """Hash of every document in it; empty when there is none."""
        with self._opened() as base:
            return _facts(base).get("state", "")

    def stale(self, documents: Sequence[Document]) -> list[str]:
        """Ids of documents that the index lacks, has otherwise, or has though they are gone."""
        with self._opened() as base:
            return sorted(_differences(base, documents))

    @watched
    def update(self, documents: Sequence[Document], progress: Progress | None = None) -> int:
        """Make the index that of these documents; only those that changed are worked on.

        Everybody may read meanwhile. Cancelled or killed midway, the index stays what it was.

        Returns:
            How many documents were added, changed or removed.
        """
        progress = progress or Progress()
        with self._opened() as base:
            while different := _differences(base, documents):
                rows = self._rows([each for each in documents if each.id in different], progress)
                with _writing(base):
                    if _differences(base, documents) == different:  # nobody else was here
                        _replace(base, documents, different, rows)
                        return len(different)
        return 0

    def ids(self) -> list[str]:
        """Of its documents."""
        with self._opened() as base:
            return [each for (each,) in base.execute("SELECT id FROM documents ORDER BY id")]

    def search(self, question: str, count: int, method: Method = "hybrid") -> list[Passage]:
        """The passages that fit a question best, as `workbench.retrieval.ranking.Searcher` finds them."""
        return self._searcher().search(question, count, method)

    def _searcher(self) -> Searcher:
        """What searches the index as it is now; the last few are kept in memory."""
        with _lock:
            while (key := (self.path, self.state)) not in _kept:
                made = Searcher(*self.read(), self.encoder)
                if self.state == key[1]:  # nobody wrote meanwhile
                    _kept[key] = made
                while len(_kept) > KEPT:
                    _kept.popitem(last=False)
            _kept.move_to_end(key)
            return _kept[key]

    def read(self) -> tuple[list[Passage], Vectors]:
        """Every passage, and its vector: ``(passages, width)``."""
        with self._opened() as base:
            rows = base.execute("SELECT id, text, vector FROM passages ORDER BY document, number").fetchall()
        width = self.encoder.width if self.encoder else 0
        vectors = np.frombuffer(b"".join(row[2] for row in rows), dtype=np.float32).reshape(len(rows), width)
        return [Passage(name, text) for name, text, _ in rows], vectors

    def _rows(self, documents: Sequence[Document], progress: Progress) -> list[Row]:
        cut = [(each.id, found) for each in documents for found in passages(each, self.words, self.overlap)]
        if self.encoder:
            vectors = self.encoder.vectors([found.text for _, found in cut], progress)
        else:
            vectors = np.empty((len(cut), 0), dtype=np.float32)
        return [(name, it.id, it.text, vector.tobytes()) for (name, it), vector in zip(cut, vectors, strict=True)]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None, timeout=PATIENCE)) as base:
                yield base
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise Corrupt(f"The index '{self.path}' is damaged: delete it, and it is made anew.") from None
            raise WorkbenchError(f"The index '{self.path}' cannot be used: {error}.") from None


def embedded(name: str, words: int, overlap: int, encoder: Encoder | None) -> Index:
    """An index in the workbench's cache."""
    return Index(cache_folder() / "indexes" / f"{name}-{FORMAT}.sqlite", words, overlap, encoder)


# By the name that `retrieve.Retrieve(store=...)` is given. Each makes the store of one set of documents from a name of
# its own, the most words in a passage, the words that two share, and the encoder, if vectors are wanted.
STORES: dict[str, Callable[[str, int, int, Encoder | None], Store]] = {"sqlite": embedded}
_lock = threading.Lock()
_kept: OrderedDict[tuple[Path, str], Searcher] = OrderedDict()


def _facts(base: sqlite3.Connection) -> dict[str, str]:
    if not base.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone():
        return {}
    return dict(base.execute("SELECT key, value FROM facts"))


def _replace(base: sqlite3.Connection, documents: Sequence[Document], different: set[str], rows: list[Row]) -> None:
    base.executemany("DELETE FROM passages WHERE document = ?", [(each,) for each in different])
    base.executemany("DELETE FROM documents WHERE id = ?", [(each,) for each in different])
    fresh = [(each.id, each.digest) for each in documents if each.id in different]
    base.executemany("INSERT INTO documents VALUES (?, ?)", fresh)
    base.executemany("INSERT INTO passages (document, id, text, vector) VALUES (?, ?, ?, ?)", rows)
    held = base.execute("SELECT id, digest FROM documents ORDER BY id").fetchall()
    state = hashlib.sha256(repr(held).encode()).hexdigest()[:16] if held else ""
    base.execute("UPDATE facts SET value = ? WHERE key = 'state'", (state,))


@contextmanager
def _writing(base: sqlite3.Connection) -> Iterator[None]:
    """A transaction of the only writer."""
    base.execute("BEGIN IMMEDIATE")
    try:
        yield
        base.execute("COMMIT")
    except BaseException:
        if base.in_transaction:  # a full disk has ended it already
            base.execute("ROLLBACK")
        raise


def _differences(base: sqlite3.Connection, documents: Sequence[Document]) -> set[str]:
    before = dict(base.execute("SELECT id, digest FROM documents"))
    now = {each.id: each.digest for each in documents}
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
