"""Rows of files: JSONL, JSON, CSV and Parquet, compressed or not, each row with the place where it stands."""

import csv
import gzip
import io
import json
import re
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core.errors import InvalidInput, first_line

MOST_BYTES = 4_000_000_000  # of a file once it is unpacked
READABLE = "a .jsonl, .csv or .parquet file, or .json or .tsv, or one of them with .gz"
INSTEAD = {  # what people bring and cannot be read, and what to do about it
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "is a spreadsheet: save its sheet as CSV"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz"), "is an archive: unpack it first"),
    ".gguf": "is a model, not data: load it with wb.load",
    **dict.fromkeys((".safetensors", ".bin", ".pt"), "is part of a model, not data: load its folder with wb.load"),
    **dict.fromkeys((".pkl", ".pickle", ".npy", ".npz"), "may run code when it is read: save it as Parquet or JSONL"),
}
SHARD = re.compile(r"[-_.](?:part[-_]?)?\d{1,6}(?:[-_]of[-_]\d{1,6})?(?:-[0-9a-f]{16})?$")  # train-00000-of-00003
_limit = threading.Lock()  # on the length of a cell, which the csv module keeps once for everybody


class Row(NamedTuple):
    """A row of a source.

    Attributes:
        place: where it stands, as an error says it.
        name: its id, if it brings none.
    """

    place: str
    name: str
    cells: Mapping[str, Any]


def kind_of(file: Path) -> str:
    """The ending that says what a file holds, in lower case and without ``.gz``; empty if no reader knows it."""
    endings = [each.lower() for each in file.suffixes[-2:]]
    if endings and endings[-1] == ".gz":
        endings.pop()
    return endings[-1] if endings and endings[-1] in READERS else ""


def stem_of(file: Path) -> str:
    """A file's name without the endings that say what it holds."""
    name = file.name
    for ending in (".gz", kind_of(file)):
        if ending and name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        InvalidInput: it is of no kind that can be read, or damaged; the first bad row is named by its line.
    """
    check_kind(file)
    return READERS[kind_of(file)](file)


def check_kind(file: Path) -> None:
    """Refuse, by its name, what cannot be read as rows.

    Raises:
        InvalidInput: says what to do instead.
    """
    if file.suffix.lower() in INSTEAD:
        raise InvalidInput(f"'{file.name}' {INSTEAD[file.suffix.lower()]}.")
    if not kind_of(file):
        raise InvalidInput(f"Cannot read '{file.name}': use {READABLE}.")


def read_text_file(file: Path) -> str:
    """The text of a file, unpacked if it is compressed.

    Raises:
        InvalidInput: it cannot be read, or is not UTF-8 (or UTF-16 with its mark).
    """
    data = read_bytes(file)
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file.name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None


def read_bytes(file: Path) -> bytes:
    """What a file holds, unpacked if it is compressed.

    Raises:
        InvalidInput: it cannot be read, is damaged, or too large once it is unpacked.
    """
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(f"Cannot unpack '{file.name}': {reason(error)}.") from None
    except OSError as error:
        raise InvalidInput(f"Cannot read '{file}': {error.strerror}.") from None
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"'{file.name}' is larger than {MOST_BYTES // 1_000_000_000} GB: split it.")
    return data


def reason(error: BaseException) -> str:
    """An error of another library, cut to one line."""
    return str(getattr(error, "msg", None) or first_line(error))


def parsed(text: str) -> Any:
    """A JSON value; a name that stands twice in one object is refused, for one of the two would be lost."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"'{_repeated([name for name, _ in pairs])[:60]}' stands there twice")
    return found


def _repeated(names: list[str]) -> str:
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _jsonl(file: Path) -> Iterator[Row]:
    return _lines(file, read_text_file(file))


def _lines(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file.name}, line {number}"
        try:
            row = parsed(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{place}: not valid JSON ({reason(error)}).") from None
        if not isinstance(row, dict):
            raise InvalidInput(f"{place}: expected a JSON object, got {type(row).__name__}.")
        yield Row(place, f"{file.name}:{number}", row)


def _json(file: Path) -> Iterator[Row]:
    """The objects of a list, bare or under the one name that holds a list; or JSONL under another ending."""
    text = read_text_file(file)
    try:
        found = parsed(text)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":
            yield from _lines(file, text)
            return
        line = getattr(error, "lineno", 1)
        raise InvalidInput(f"{file.name}, line {line}: not valid JSON ({reason(error)}).") from None
    if isinstance(found, dict):
        lists = [each for each in found.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
        found = lists[0] if len(lists) == 1 and not {"messages", "conversations"} & found.keys() else [found]
    if not isinstance(found, list):
        raise InvalidInput(f"{file.name}: expected a list of JSON objects, got {type(found).__name__}.")
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise InvalidInput(f"{file.name}, row {number}: expected a JSON object, got {type(row).__name__}.")
        yield Row(f"{file.name}, row {number}", f"{file.name}:{number}", row)


def _csv(file: Path) -> Iterator[Row]:
    text = read_text_file(file)
    head = text.partition("\n")[0]
    found = (each for each in "\t;" if each in head and ("," not in head or kind_of(file) == ".tsv"))
    mark = next(found, ",")
    with _limit:
        before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # cells of any length, as in the other kinds
        try:
            rows = list(_cells(file.name, csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)))
        finally:
            csv.field_size_limit(before)
    return iter(rows)


def _cells(name: str, reader: Any) -> Iterator[Row]:
    header: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InvalidInput(f"{name}, line {start}: {error}.") from None
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = cells
            if twice := _repeated(header):
                raise InvalidInput(f"{name}, line {start}: the column '{twice[:60]}' stands there twice: rename one.")
        elif len(cells) != len(header):
            raise InvalidInput(f"{name}, line {start}: expected {len(header)} cells, got {len(cells)}.")
        else:
            yield Row(f"{name}, line {start}", f"{name}:{reader.line_num}", dict(zip(header, cells, strict=True)))


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    data = io.BytesIO(read_bytes(file)) if file.suffix.lower() == ".gz" else file
    try:
        table = pyarrow.parquet.ParquetFile(data).read()
        if twice := _repeated(table.column_names):
            raise InvalidInput(f"{file.name}: the column '{twice[:60]}' stands there twice: rename one.")
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"Cannot read '{file.name}' as Parquet: {reason(error)}.") from None
    for number, row in enumerate(rows, start=1):
        yield Row(f"{file.name}, line {number}", f"{file.name}:{number}", row)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".json": _json,
    ".ndjson": _jsonl,
    ".tsv": _csv,
}
