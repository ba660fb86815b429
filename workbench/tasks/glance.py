"""A first look at a file of examples: its columns, its first rows, and which column is probably what."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.core.files import home
from workbench.tasks.chat import shape_of
from workbench.tasks.files import read_rows

LOOKED_AT = 5  # rows
USUAL = {  # how others name what a row of ours holds
    "prompt": ("prompt", "question", "query", "input", "instruction", "problem", "message", "text", "sentence"),
    "answer": ("answer", "response", "output", "completion", "label", "target", "solution", "reply", "category"),
    "choices": ("choices", "options"),
    "context": ("context", "passage", "background"),
    "document": ("document", "doc_id"),
}


@dataclass(frozen=True)
class Glance:
    """What the first rows of a file show.

    Attributes:
        columns: names of all columns that they have, in order.
        rows: the first ones.
        shape: of conversations, if they are any, such as ``messages``; empty for plain columns.
        guess: our names of columns to the file's, as far as its names tell.
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    shape: str
    guess: dict[str, str]


def glance(source: str | Path) -> Glance:
    """Look at the first rows of a JSONL, JSON, CSV or Parquet file.

    Raises:
        InvalidInput: it is of no kind that can be read, or damaged.
    """
    rows = tuple(row.cells for row in islice(read_rows(home(source)), LOOKED_AT))
    columns = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    shape = next(filter(None, map(shape_of, rows)), None)
    return Glance(columns, rows, shape.name if shape else "", {} if shape else guess(columns))


def guess(columns: tuple[str, ...]) -> dict[str, str]:
    """Our names to columns, by name: the whole name first, then a word of it; no column stands for two."""
    found: dict[str, str] = {}
    for alike in (str.__eq__, str.__contains__):
        for ours, names in USUAL.items():
            free = [each for each in columns if each not in found.values()]
            hits = (each for name in names for each in free if alike(each.strip().lower(), name))
            if ours not in found and (hit := next(hits, None)):
                found[ours] = hit
    return found
