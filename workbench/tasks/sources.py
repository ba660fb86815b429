"""Reading tasks and texts from files and from the hub.

Nothing is half loaded: the first bad row stops the read, named by file and line.
"""

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.core.errors import InvalidInput, NotAvailable, first_line
from workbench.core.files import is_kind
from workbench.core.optional import library
from workbench.tasks.task import SPLITS, Example, Task, Text

SHARES = {"calibration": 0.15, "test": 0.25}  # of a file that brings no splits of its own; the rest is for training
SETTINGS = ("name", "instruction", "scorer", "max_new_tokens")
COLUMNS = ("id", "prompt", "answer", "choices", "document", "context")


def read_text(path: str | Path, window: int = 512, calibration: int = 16, test: int = 32) -> Text:
    """Read a text file, or every .txt and .md file of a folder in name order (README left out), as token windows."""
    path = Path(path)
    if is_kind(path, Path.is_dir):
        files = sorted(p for p in path.iterdir() if p.suffix in {".txt", ".md"} and p.stem.upper() != "README")
    else:
        files = [path]
    texts = [_read(file) for file in files]
    if not any(text.strip() for text in texts):
        raise InvalidInput(f"'{path}' holds no text: name a text file or a folder of .txt or .md files.")
    return Text(name=path.stem, text="\n\n".join(texts), window=window, calibration=calibration, test=test)


def read_task(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    scorer: str | None = None,
    max_new_tokens: int | None = None,
    name: str | None = None,
) -> Task:
    """Read a task from a folder, a JSONL, CSV or Parquet file, or a `datasets` id.

    A folder holds ``train``, ``calibration`` and ``test`` files (.jsonl, .csv or .parquet; only test is required) and
    optionally ``task.json`` with name, instruction, scorer and max_new_tokens, and a folder ``documents``. A single
    file, or a data set with one split, is divided by a seeded shuffle.

    Args:
        columns: our names (id, prompt, answer, choices, document, context) to the source's names.

    Raises:
        InvalidInput: a malformed row, named by file and line; a missing column; a repeated id; no examples.
        NotAvailable: nothing on disk has that name and the hub cannot be reached.
    """
    path = Path(source)
    fields: dict[str, Any] = {"name": path.stem}
    if is_kind(path, Path.is_dir):
        fields |= _settings(path / "task.json")
        files = {split: file for split in SPLITS if (file := _split_file(path, split))}
        if "test" not in files:
            raise InvalidInput(f"'{path}' has no test.jsonl, test.csv or test.parquet: add the test split.")
        splits = {split: _examples(_rows(file), file.name, columns) for split, file in files.items()}
        if is_kind(path / "documents", Path.is_dir):
            fields["documents"] = str(path / "documents")
    elif is_kind(path, Path.is_file):
        splits = _divide(_examples(_rows(path), path.name, columns))
    else:
        splits = _hub_splits(str(source), columns)
    given = {"name": name, "instruction": instruction, "scorer": scorer, "max_new_tokens": max_new_tokens}
    fields |= {key: value for key, value in given.items() if value is not None} | splits
    return Task(**fields)


def _settings(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        settings = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InvalidInput(f"{file.name}, line {line}: not valid JSON ({_reason(error)}).") from None
    if not isinstance(settings, dict) or not settings.keys() <= set(SETTINGS):
        raise InvalidInput(f"{file.name} must be a JSON object with no other keys than {', '.join(SETTINGS)}.")
    return settings


def _split_file(folder: Path, split: str) -> Path | None:
    found = [folder / f"{split}{suffix}" for suffix in READERS if (folder / f"{split}{suffix}").exists()]
    return found[0] if found else None


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their line number in the file."""
    if file.suffix not in READERS:
        raise InvalidInput(f"Cannot read '{file.name}': use a .jsonl, .csv or .parquet file.")
    return READERS[file.suffix](file)


def _jsonl(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{file.name}, line {number}: not valid JSON ({_reason(error)}).") from None
        if not isinstance(row, dict):
            raise InvalidInput(f"{file.name}, line {number}: expected a JSON object, got {type(row).__name__}.")
        yield number, row


def _csv(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_read(file), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InvalidInput(
                    f"{file.name}, line {reader.line_num}: expected {len(reader.fieldnames or ())} cells."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InvalidInput(f"{file.name}, line {reader.line_num}: {error}.") from None


def _parquet(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"Cannot read '{file.name}' as Parquet: {_reason(error)}.") from None
    return enumerate(rows, start=1)


READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _hub_splits(source: str, columns: Mapping[str, str] | None) -> dict[str, tuple[Example, ...]]:
    loaded = hub_dataset(source)
    names = {"train": "train", "validation": "calibration", "test": "test"}
    splits = {names[k]: _examples(enumerate(v, 1), f"{source}/{k}", columns) for k, v in loaded.items() if k in names}
    if "test" in splits:
        return splits
    return _divide(tuple(example for split in splits.values() for example in split))


def _examples(
    rows: Iterator[tuple[int, Mapping[str, Any]]], origin: str, columns: Mapping[str, str] | None
) -> tuple[Example, ...]:
    names = {ours: ours for ours in COLUMNS} | dict(columns or {})
    unknown = set(names) - set(COLUMNS)
    if unknown:
        raise InvalidInput(f"columns maps {', '.join(COLUMNS)}; '{sorted(unknown)[0]}' is none of them.")
    examples = []
    for number, row in rows:
        missing = [names[key] for key in ("prompt", "answer") if names[key] not in row]
        if missing:
            raise InvalidInput(
                f"{origin}, line {number}: no column '{missing[0]}' (it has {', '.join(map(str, row))}): "
                "pass columns={'prompt': ..., 'answer': ...} to name yours."
            )
        fields = {ours: row[theirs] for ours, theirs in names.items() if row.get(theirs) is not None}
        try:
            examples.append(Example(**({"id": f"{origin}:{number}"} | fields)))
        except InvalidInput as error:
            raise InvalidInput(f"{origin}, line {number}: {error}") from None
    return tuple(examples)


def _divide(examples: tuple[Example, ...]) -> dict[str, tuple[Example, ...]]:
    """Splits of a seeded shuffle; one example is enough for a test split."""
    shuffled = tuple(random.Random(0).sample(examples, len(examples)))
    test = max(1, round(len(shuffled) * SHARES["test"]))
    calibration = min(round(len(shuffled) * SHARES["calibration"]), max(0, len(shuffled) - test))
    rest = shuffled[test:]
    return {"test": shuffled[:test], "calibration": rest[:calibration], "train": rest[calibration:]}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file.name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise InvalidInput(f"Cannot read '{file}': {error.strerror}.") from None


def _reason(error: BaseException) -> str:
    """An error of another library, cut to one line."""
    return str(getattr(error, "msg", None) or first_line(error))


def hub_dataset(source: str) -> Any:
    """A data set of the hub, by split.

    Raises:
        NotAvailable: the hub has none of that id, or cannot be reached.
    """
    datasets = library("datasets", "Reading data sets of the hub")
    try:
        return datasets.load_dataset(source)
    except Exception as error:  # the library raises a dozen unrelated types for "cannot get it"
        raise NotAvailable(
            f"There is no file or folder '{source}', and it could not be loaded as a data set ({first_line(error)}): "
            "check the path, or the id and the network."
        ) from None
