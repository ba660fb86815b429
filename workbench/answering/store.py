"""Answers kept on this machine: bounded, private, shared by kernels, and checked when they are read."""

import hashlib
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TypeVar

from workbench.answering.request import Generation, Passage
from workbench.core.errors import first_line
from workbench.core.files import cache_folder

FORMAT = "1"
PATIENCE = 1.0  # seconds that another kernel's write is waited for; an answer that is not kept is made again
RENEWED = 60.0  # seconds after which a hit renews an entry's place, so that most hits write nothing
LONGEST = 1 << 24  # bytes of an entry that is read at all
COLUMNS = "key, scope, question, vector, answer, made, used, digest"
TABLES = f"""
CREATE TABLE IF NOT EXISTS answers ({COLUMNS}, size INTEGER NOT NULL, PRIMARY KEY (key));
CREATE INDEX IF NOT EXISTS of_scope ON answers (scope);
"""
T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """How much is kept, and how long.

    Attributes:
        seconds: from when an answer was made.
        entries: most answers.
        nbytes: most bytes of all of them.
    """

    seconds: float
    entries: int
    nbytes: int


@dataclass(frozen=True)
class Entry:
    """One answer and what it answers.

    Attributes:
        key: hash of all that shaped it.
        answer: as JSON.
        made: when, in seconds since 1970.
        scope: hash of all that shaped it but the last question's wording; empty where wordings are not compared.
        question: that wording.
        vector: of its meaning, float32 as bytes.
    """

    key: str
    answer: str
    made: float
    scope: str = ""
    question: str = ""
    vector: bytes = b""

    @property
    def digest(self) -> str:
        """Hash of all of it, kept beside it."""
        return hashlib.sha256(repr([getattr(self, each.name) for each in fields(self)]).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes that count."""
        return sum(map(len, (self.key, self.scope, self.vector, self.answer.encode(), self.question.encode())))

    def generation(self) -> Generation | None:
        """The answer; None if it is none."""
        try:
            held = json.loads(self.answer)
            held["passages"] = tuple(Passage(**each) for each in held["passages"])
            held |= {name: tuple(held[name]) for name in ("token_ids", "notes")}
            return Generation(times=(0.0,), **held) if held["token_ids"] else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


class Store:
    """Answers in one SQLite file of the user's alone, or in memory.

    Several kernels may use one file. Whatever is damaged, foreign or changed in it counts as not there. A disk that
    refuses, or is full, is said once; answers are then kept in memory.

    Attributes:
        asked: how many times an answer was looked for.
        hits: how many times one was found.
        wrong: entries that were not what had been written.
        evicted: entries that had to go because there was no room.

    Args:
        path: of the file; None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.asked = self.hits = self.wrong = self.evicted = 0
        self._turn = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._mark: tuple[int, ...] = ()
        self._memory = None if path else _prepared(":memory:")
        self._told: set[str] = set()

    def find(self, key: str, seconds: float) -> Entry | None:
        """The answer of a key, if it is no older."""
        self.asked += 1
        found = self._use(lambda base: self._rows(base, "key = ?", key, seconds))
        return found[0] if found else None

    def near(self, scope: str, seconds: float) -> list[Entry]:
        """Answers to other wordings in a scope."""
        return self._use(lambda base: self._rows(base, "scope = ?", scope, seconds)) or []

    def again(self, found: Entry, how: str, why: str) -> Generation | None:
        """The answer of an entry, marked so; its place is renewed."""
        self.hits += 1
        answer, age = found.generation(), time.time() - found.made
        if age > RENEWED:
            values = (time.time(), found.key, time.time() - RENEWED)
            self._use(lambda base: base.execute("UPDATE answers SET used = ? WHERE key = ? AND used < ?", values))
        note = f"From the cache of answers: {why} {_ago(age)}."
        return answer and answer.but(cached=how, notes=(*answer.notes, note))

    def learn(self, new: Entry, bounds: Bounds) -> None:
        """Keep an answer; what is too old goes, then what was used least recently."""
        if new.size <= min(bounds.nbytes, LONGEST):
            self.evicted += self._use(lambda base: _write(base, new, bounds)) or 0

    def clear(self) -> None:
        """Forget everything."""
        self._use(lambda base: base.execute("DELETE FROM answers"))

    @property
    def statistics(self) -> dict[str, int]:
        """Entries and bytes now; and since the kernel started how often it was asked, hit, wrong, and short of room."""
        count, size = self._use(lambda base: base.execute(TOTALS).fetchone()) or (0, 0)
        counted = {"asked": self.asked, "hits": self.hits, "wrong": self.wrong, "evicted": self.evicted}
        return {"entries": count, "bytes": size, **counted}

    def _rows(self, base: sqlite3.Connection, where: str, value: str, seconds: float) -> list[Entry]:
        """Entries that are what was written and not too old."""
        rows = base.execute(
            f"SELECT {COLUMNS} FROM answers WHERE {where} AND length(answer) <= {LONGEST}", (value,)
        ).fetchall()
        found, now = [], time.time()
        for key, scope, question, vector, answer, made, _, digest in rows:
            each = Entry(key, answer, made, scope, question, vector)
            kinds = [type(it) for it in (key, answer, made, scope, question, vector)]
            if kinds != [str, str, float, str, str, bytes] or each.digest != digest or each.generation() is None:
                self.wrong += 1
                base.execute("DELETE FROM answers WHERE key IS ?", (key,))
            elif 0 <= now - made < seconds:
                found.append(each)
        return found

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What the work gives; None where the file is damaged or busy."""
        with self._turn:
            if self._memory is None and self.path is not None:
                try:
                    return work(self._opened(self.path))
                except (sqlite3.Error, OSError) as error:
                    self._close()
                    self._bear(error, self.path)
            return None if self._memory is None else work(self._memory)

    def _opened(self, path: Path) -> sqlite3.Connection:
        """The file, opened anew if it is not the one that is open: set aside, or in a process forked since."""
        if self._open is None or self._mark != _mark(path):
            self._close()
            _private(path)
            self._mark = _mark(path)
            self._open = _prepared(path)
        return self._open

    def _close(self) -> None:
        """Let go of the file; what was half written is taken back."""
        if self._open is not None and self._mark[0] == os.getpid():
            self._open.close()
        self._open = None

    def _bear(self, error: Exception, path: Path) -> None:
        """Go on without what could not be used."""
        code = getattr(error, "sqlite_errorcode", -1) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return
        refused = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if isinstance(error, OSError) or code in refused:
            self._memory = _prepared(":memory:")
            self._say(
                f"Answers are no longer kept in '{path}' ({first_line(error)}): they are forgotten with the kernel."
            )
        else:
            with suppress(OSError):
                os.replace(path, path.with_name(f"{path.name}.damaged"))
            self._say(f"The answers kept in '{path}' are damaged and were set aside ({first_line(error)}).")

    def _say(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            warnings.warn(sentence, stacklevel=2)


@cache
def _store(path: Path | None) -> Store:
    return Store(path)


def store(on_disk: bool = True) -> Store:
    """The answers of this user's kernels, or those of this kernel alone."""
    return _store(cache_folder() / "answers" / f"answers-{FORMAT}.sqlite" if on_disk else None)


def _ago(seconds: float) -> str:
    """How long ago, for people."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


TOTALS = "SELECT count(*), coalesce(sum(size), 0) FROM answers"


def _write(base: sqlite3.Connection, new: Entry, bounds: Bounds) -> int:
    """Put an entry in; gives how many others had to go for want of room."""
    base.execute("BEGIN IMMEDIATE")
    values = (new.key, new.scope, new.question, new.vector, new.answer, new.made, new.made, new.digest, new.size)
    base.execute(f"INSERT OR REPLACE INTO answers ({COLUMNS}, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    base.execute("DELETE FROM answers WHERE made < ?", (new.made - bounds.seconds,))
    count, size = base.execute(TOTALS).fetchone()
    gone: list[tuple[str]] = []
    if count > bounds.entries or size > bounds.nbytes:
        for key, each in base.execute("SELECT key, size FROM answers ORDER BY used, made, rowid"):
            if count - len(gone) <= bounds.entries and size <= bounds.nbytes:
                break
            gone.append((key,))
            size -= each
        base.executemany("DELETE FROM answers WHERE key IS ?", gone)
    base.execute("COMMIT")
    return len(gone)


def _prepared(place: Path | str) -> sqlite3.Connection:
    """A file, or memory, with its tables."""
    base = sqlite3.connect(place, isolation_level=None, timeout=PATIENCE, check_same_thread=False)
    try:
        base.execute("PRAGMA trusted_schema = OFF")
        base.execute("PRAGMA synchronous = OFF")  # what a power cut damages is only made again
        for statement in TABLES.split(";"):
            base.execute(statement)
    except sqlite3.Error:
        base.close()
        raise
    return base


def _mark(path: Path) -> tuple[int, ...]:
    """This process, and which file is there, whose, and for whom; nothing of it if there is none."""
    try:
        held = os.lstat(path)
    except FileNotFoundError:
        return (os.getpid(),)
    return os.getpid(), held.st_dev, held.st_ino, held.st_uid, held.st_mode


def _private(path: Path) -> None:
    """Make sure that a file and its folder are there, and the user's alone.

    Raises:
        OSError: they are not, and cannot be made so.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.parent.stat().st_mode & 0o077:
        path.parent.chmod(0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        held = os.fstat(descriptor)
        if hasattr(os, "getuid") and held.st_uid != os.getuid():
            raise PermissionError(f"'{path.name}' belongs to another user")
        if held.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
