"""Reading tasks and texts from files and from the hub.

Nothing is half loaded: the first bad row stops the read, named by file and line.
"""

import json
import random
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from workbench.core.errors import InvalidInput, NotAvailable, first_line
from workbench.core.files import home, is_kind, looks_like_path
from workbench.core.optional import library
from workbench.tasks.chat import Shape, shape_of
from workbench.tasks.files import (
    READERS,
    SHARD,
    Row,
    kind_of,
    parsed,
    read_rows,
    read_text_file,
    reason,
    stem_of,
)
from workbench.tasks.task import SPLITS, Example, Task, Text

NAMES = {  # of the files and folders of a split, and of the splits of the hub
    "train": ("train", "training"),
    "calibration": ("calibration", "validation", "valid", "val", "dev"),
    "test": ("test",),
}
LOOKED_AT = 20  # rows that tell how a source writes questions and answers
SHARES = {"calibration": 0.15, "test": 0.25}  # of a file that brings no splits of its own; the rest is for training
SETTINGS = ("name", "instruction", "scorer", "max_new_tokens")
COLUMNS = ("id", "prompt", "answer", "choices", "document", "context")


def read_text(path: str | Path, window: int = 512, calibration: int = 16, test: int = 32) -> Text:
    """Read a text file, or every .txt and .md file of a folder in name order (README left out), as token windows."""
    path = home(path)
    if is_kind(path, Path.is_dir):
        found = (p for p in path.iterdir() if p.suffix.lower() in {".txt", ".md"} and p.stem.upper() != "README")
        files = sorted(found)
    else:
        files = [path]
    texts = [read_text_file(file) for file in files]
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
    """Read a task from a folder, a JSONL, JSON, CSV or Parquet file, or a `datasets` id.

    A folder holds ``train``, ``calibration`` (or ``validation``) and ``test`` files (.jsonl, .json, .csv, .tsv or
    .parquet, each also with .gz; only test is required), whole or in shards (``train-00000-of-00002.parquet``), and
    optionally ``task.json`` with name, instruction, scorer and max_new_tokens, and a folder ``documents``. A single
    file, a folder of other shards, or a data set with one split, is divided by a seeded shuffle.

    A row has a prompt and an answer. It may also be a conversation (``messages`` as of OpenAI, ``conversations`` as of
    ShareGPT, ``prompt`` and ``completion`` as of TRL) or an instruction with its output (Alpaca), which the first rows
    tell: the last answer is the gold one, the user's turn before it the prompt, what stands before that its history.
    The task's ``notes`` say what was taken for what. Choices are a list, JSON in a text, or texts with ``|`` between.

    Args:
        columns: our names (id, prompt, answer, choices, document, context) to the source's names.

    Raises:
        InvalidInput: a malformed row, named by file and line; a missing column; a repeated id; no examples.
        NotAvailable: nothing on disk has that name, and it is a path or the hub cannot be reached.
    """
    path = home(source)
    fields: dict[str, Any] = {"name": stem_of(path) if kind_of(path) else path.stem}
    if is_kind(path, Path.is_dir):
        fields |= _settings(path / "task.json")
        read = {split: _read(_rows(files), columns) for split, files in _split_files(path).items()}
        if is_kind(path / "documents", Path.is_dir):
            fields["documents"] = str(path / "documents")
    elif is_kind(path, Path.is_file):
        read = {"": _read(read_rows(path), columns)}
    elif looks_like_path(source):
        raise NotAvailable(f"There is no file or folder '{source}': check the path.")
    else:
        read = _hub_splits(str(source), columns)
    splits = {split: examples for split, (examples, _) in read.items()}
    if "test" not in splits:
        splits = _divide(tuple(chain.from_iterable(splits.values())))
    notes = dict.fromkeys(note for _, note in read.values() if note)
    given = {"name": name, "instruction": instruction, "scorer": scorer, "max_new_tokens": max_new_tokens}
    fields |= {key: value for key, value in given.items() if value is not None} | splits
    return Task(notes=tuple(notes), **fields)


def _settings(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        settings = parsed(read_text_file(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        line = getattr(error, "lineno", 1)
        raise InvalidInput(f"{file.name}, line {line}: not valid JSON ({reason(error)}).") from None
    if not isinstance(settings, dict) or not settings.keys() <= set(SETTINGS):
        raise InvalidInput(f"{file.name} must be a JSON object with no other keys than {', '.join(SETTINGS)}.")
    return settings


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split; under "" those of a folder whose files are named by no split.

    Raises:
        InvalidInput: there are none, or a train split without a test split.
    """
    places = [folder, folder / "data", *(folder / name for names in NAMES.values() for name in names)]
    files = [each for place in places if is_kind(place, Path.is_dir) for each in sorted(place.iterdir())]
    files = [each for each in files if kind_of(each) and each.name != "task.json" and not each.name.startswith(".")]
    found = {split: _of_one_kind([each for each in files if _split_of(each, folder) == split]) for split in SPLITS}
    found = {split: of_split for split, of_split in found.items() if of_split}
    whole = [each for of_split in found.values() for each in of_split if not SHARD.search(stem_of(each))]
    if "test" in found or (found and not whole):  # a data set in shards may have no test split
        return found
    others = _of_one_kind([each for each in files if each.parent == folder])
    if found or not others:
        raise InvalidInput(f"'{folder}' has no test.jsonl, test.csv or test.parquet: add the test split.")
    return {"": others}


def _of_one_kind(files: list[Path]) -> list[Path]:
    """The files of the first kind that there is, so that a table that was also saved in another form counts once."""
    return next((of_kind for kind in READERS if (of_kind := [each for each in files if kind_of(each) == kind])), [])


def _split_of(file: Path, folder: Path) -> str:
    name = file.parent.name if file.parent not in (folder, folder / "data") else SHARD.sub("", stem_of(file))
    return next((split for split, names in NAMES.items() if name.lower() in names), "")


def _rows(files: Iterable[Path]) -> Iterable[Row]:
    return chain.from_iterable(map(read_rows, files))


def _hub_splits(source: str, columns: Mapping[str, str] | None) -> dict[str, tuple[tuple[Example, ...], str]]:
    loaded = hub_dataset(source)
    names = {name: split for split, all_names in NAMES.items() for name in all_names}
    found = {}
    for key, all_rows in loaded.items():
        if key in names:
            rows = (Row(f"{source}/{key}, line {n}", f"{source}/{key}:{n}", row) for n, row in enumerate(all_rows, 1))
            found[names[key]] = _read(rows, columns)
    return found


def _read(rows: Iterable[Row], columns: Mapping[str, str] | None) -> tuple[tuple[Example, ...], str]:
    """The examples that rows stand for, and what they were taken for, if they have no prompt and answer."""
    names = {ours: ours for ours in COLUMNS} | dict(columns or {})
    unknown = set(names) - set(COLUMNS)
    if unknown:
        raise InvalidInput(f"columns maps {', '.join(COLUMNS)}; '{sorted(unknown)[0]}' is none of them.")
    rows = iter(rows)
    first = list(islice(rows, LOOKED_AT))
    shape = None if {"prompt", "answer"} & set(columns or {}) else next(filter(None, map(_shape, first)), None)
    examples = tuple(_example(row, names, shape) for row in chain(first, rows))
    if not shape:
        return examples, ""
    return examples, f"read as {shape.name}: the last answer of a row is the gold one, what follows it is left out"


def _shape(row: Row) -> Shape | None:
    try:
        return shape_of(row.cells)
    except InvalidInput as error:
        raise InvalidInput(f"{row.place}: {error}") from None


def _example(row: Row, names: Mapping[str, str], shape: Shape | None) -> Example:
    missing = [names[key] for key in ("prompt", "answer") if names[key] not in row.cells]
    if missing and not shape:
        raise InvalidInput(
            f"{row.place}: no column '{missing[0]}' (it has {', '.join(map(str, row.cells))}): "
            "pass columns={'prompt': ..., 'answer': ...} to name yours."
        )
    fields = {ours: row.cells[theirs] for ours, theirs in names.items() if row.cells.get(theirs) is not None}
    try:
        if shape:
            fields |= shape.fields(row.cells)
        if isinstance(fields.get("choices"), str):
            fields["choices"] = _choices(fields["choices"])
        return Example(**({"id": row.name} | fields))
    except InvalidInput as error:
        raise InvalidInput(f"{row.place}: {error}") from None


def _choices(cell: str) -> tuple[str, ...]:
    """The choices in one cell of a table: a JSON list, or texts with ``|`` between."""
    if cell.strip().startswith("["):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(each, str | int | float) for each in found):
            raise InvalidInput(f"choices is '{cell[:60]}', but no JSON list of texts.")
        return tuple(map(str, found))
    return tuple(each.strip() for each in cell.split("|")) if cell.strip() else ()


def _divide(examples: tuple[Example, ...]) -> dict[str, tuple[Example, ...]]:
    """Splits of a seeded shuffle; one example is enough for a test split."""
    shuffled = tuple(random.Random(0).sample(examples, len(examples)))
    test = max(1, round(len(shuffled) * SHARES["test"]))
    calibration = min(round(len(shuffled) * SHARES["calibration"]), max(0, len(shuffled) - test))
    rest = shuffled[test:]
    return {"test": shuffled[:test], "calibration": rest[:calibration], "train": rest[calibration:]}


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
