"""Documents and the pieces of them that are looked up."""

import hashlib
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from workbench.answering.request import Passage
from workbench.core.errors import InvalidInput, NotAvailable, WorkbenchError
from workbench.core.files import home, is_kind, looks_like_path
from workbench.core.sentences import sentences
from workbench.core.words import composed, mended
from workbench.core.words import words as cut
from workbench.retrieval.extract import plain_text, text_of
from workbench.tasks.sources import hub_dataset

MOST_BYTES = 20_000_000  # of one document's file
MOST_PACKED_BYTES = 200_000_000  # of one that may hold pictures, too
KEPT = 256  # texts of such files
PACKED = (b"%PDF-", b"PK\x03\x04")
MOST_ROWS_BYTES = 1_000_000_000  # of a file of rows
WRAP = re.compile(r"(?<=[^\n]{50})\n(?=[^\W\d_])")  # a line break that only keeps lines of prose short
TEXT_KEYS = ("text", "content", "body", "passage")
LOST = "\ufffd"
ROWS = (".jsonl", ".ndjson")
ID_KEYS = ("id", "_id", "title", "url")


@dataclass(frozen=True)
class Document:
    """A text with a name of its own."""

    id: str
    text: str

    @property
    def digest(self) -> str:
        """Hash of what it says."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass
class Library:
    """The documents of a source.

    Attributes:
        documents: in their order, ids unique.
        refused: what could not be read, each with its reason.
    """

    documents: list[Document] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _taken: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, text: str) -> None:
        """Take a document, unless it says nothing; a name that is taken gets a number."""
        if not text.strip():
            self.refused.append(f"{name}: empty")
            return
        name, text = composed(mended(name)), composed(mended(text))
        if not text.strip(f"{LOST}{string.whitespace}"):
            self.refused.append(f"{name}: not Unicode text")
            return
        wanted = name
        while name in self._taken:
            self._taken[wanted] += 1
            name = f"{wanted} ({self._taken[wanted]})"
        self._taken[name] = 1
        self.documents.append(Document(name, text))


def read_documents(source: str | Path) -> Library:
    """Read the documents of a folder, a file, or a `datasets` id.

    A folder gives one document a file, named by its path in the folder; hidden files and links that lead elsewhere are
    left out. The text of PDF, HTML, DOCX, mail, notebooks and Markdown is taken out of them
    (`workbench.retrieval.extract`). Files that hold no text, that need a library which is not installed, or that are
    larger than 20 MB (PDF and DOCX: 200 MB, JSONL: 1 GB) are refused by name, and the rest is read. Rows of a JSONL
    file, of a list in a JSON file, and of a data set have their text in a column ``text`` (or content, body, passage).
    All texts are in Unicode's normal form C.

    Raises:
        InvalidInput: nothing could be read.
        NotAvailable: nothing on disk has that name, and it is a path or the hub cannot be reached.
    """
    path, library = home(source), Library()
    if not str(source).strip():
        raise InvalidInput("No documents are named: give a folder, a text or JSONL file, or a data set's id.")
    if is_kind(path, Path.is_dir):
        for file in sorted(_files(path)):
            _read_file(file, str(file.relative_to(path)), library)
    elif is_kind(path, Path.is_file):
        _read_file(path, path.name, library)
    elif looks_like_path(source):
        raise NotAvailable(f"There is no file or folder '{source}': check the path.")
    else:
        _read_dataset(str(source), library)
    if not library.documents:
        found = f": {'; '.join(library.refused[:3])}" if library.refused else ""
        raise InvalidInput(f"'{source}' holds no document that can be read{found}.")
    return library


def _files(folder: Path) -> Iterator[Path]:
    home = folder.resolve()
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.is_file() and file.resolve().is_relative_to(home):
            yield file


def _read_file(file: Path, name: str, library: Library) -> None:
    ending = file.suffix.lower()
    try:
        stat = file.stat()
        with file.open("rb") as raw:
            packed = raw.read(5).startswith(PACKED)
        most = MOST_ROWS_BYTES if ending in ROWS else MOST_PACKED_BYTES if packed else MOST_BYTES
        if stat.st_size > most:
            library.refused.append(f"{name}: larger than {most // 1_000_000} MB")
            return
        if ending in ROWS:
            text = plain_text(file.read_bytes())
        else:
            text = _unpacked(file, stat.st_mtime_ns, stat.st_size) if packed else text_of(file.read_bytes(), file.name)
    except OSError as error:
        library.refused.append(f"{name}: {error.strerror}")
        return
    except WorkbenchError as error:
        library.refused.append(f"{name}: {str(error).rstrip('.')}")
        return
    rows = _lines(text) if ending in ROWS else _listed(text) if ending == ".json" else None
    if rows is None:
        library.add(name, text)
        return
    for number, row in rows:
        if not _add_row(row, f"{name}:{number}", library):
            library.refused.append(f"{name}, line {number}: no JSON object with a text")


@lru_cache(maxsize=KEPT)
def _unpacked(file: Path, changed: int, size: int) -> str:
    """The text of a file that takes long to read; read again once it has changed."""
    return text_of(file.read_bytes(), file.name)


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def _listed(text: str) -> Iterator[tuple[int, Any]] | None:
    """The rows of a list, if that is what a JSON file holds."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    isrows = isinstance(found, list) and any(isinstance(each, dict) and set(TEXT_KEYS) & each.keys() for each in found)
    return enumerate(found, start=1) if isrows else None


def _read_dataset(source: str, library: Library) -> None:
    for split, rows in hub_dataset(source).items():
        for number, row in enumerate(rows):
            if not _add_row(row, f"{split}:{number}", library):
                library.refused.append(f"{split}:{number}: no text in {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}")


def _add_row(row: Any, name: str, library: Library) -> bool:
    if not isinstance(row, dict):
        return False
    text = next((row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)), None)
    if text is None:
        return False
    library.add(str(next((row[key] for key in ID_KEYS if row.get(key) not in (None, "")), name)), text)
    return True


def passages(document: Document, words: int, overlap: int) -> list[Passage]:
    """A document in pieces of at most so many words, cut between sentences where there are any.

    Args:
        document: with its text.
        words: most in a piece, as `workbench.core.words` counts them in any script.
        overlap: of a piece's last words, about how many the next one begins with, in whole sentences; half at most.
    """
    overlap = min(overlap, words // 2)
    pieces: list[list[_Part]] = [[]]
    held = 0  # words of the last piece
    for part in _parts(document.text, words):
        if pieces[-1] and held + part.size > words:
            pieces.append(_tail(pieces[-1], min(overlap, words - part.size)))
            held = sum(each.size for each in pieces[-1])
        pieces[-1].append(part)
        held += part.size
    texts = [text for piece in pieces if (text := "".join(each.text for each in piece).strip())]
    if len(texts) == 1:
        return [Passage(document.id, texts[0])]
    return [Passage(f"{document.id}#{number}", each) for number, each in enumerate(texts, start=1)]


class _Part(NamedTuple):
    """A sentence, or as much of one as a passage holds."""

    text: str
    size: int


def _parts(text: str, words: int) -> Iterator[_Part]:
    for found in sentences(WRAP.sub(" ", text)):
        split = cut(found) or [found]
        for start in range(0, len(split), words):  # a sentence without an end is cut, too
            yield _Part("".join(split[start : start + words]), len(split[start : start + words]))


def _tail(parts: list[_Part], words: int) -> list[_Part]:
    kept, held = 0, 0
    for each in reversed(parts):
        held += each.size
        if held > words:
            break
        kept += 1
    return parts[len(parts) - kept :]
