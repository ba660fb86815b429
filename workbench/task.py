"""What a variant is judged on: examples to train, calibrate and test with, and how an answer is scored.

`read_task` takes a folder, a JSONL, CSV or Parquet file, or a `datasets` id; `read_text` turns plain text into token
windows scored by perplexity. Nothing is half loaded: the first bad row stops the read, named by file and line.
"""

import csv
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from workbench.errors import InvalidInput, NotAvailable
from workbench.scoring import SCORERS

SPLITS = ("train", "calibration", "test")
SHARES = {"train": 0.6, "calibration": 0.15, "test": 0.25}  # of a file that brings no splits of its own
COLUMNS = ("id", "prompt", "answer", "choices", "document")


class Example(BaseModel):
    """One question with its gold answer.

    Attributes:
        id: unique within the task.
        prompt: the user's text, treated as data.
        answer: the gold answer.
        choices: the answers to choose from; the gold one among them. Empty for free answers.
        document: id of the document that holds the answer, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)
    id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str
    choices: tuple[str, ...] = ()
    document: str | None = None


class Task(BaseModel):
    """Disjoint train, calibration and test examples and the way an answer is scored.

    Attributes:
        instruction: put before every prompt.
        scorer: name of a function in `workbench.scoring.SCORERS`.
        max_new_tokens: how long an answer may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))
    name: str
    instruction: str = ""
    scorer: str = "exact"
    max_new_tokens: int = Field(default=64, ge=1)
    train: tuple[Example, ...] = ()
    calibration: tuple[Example, ...] = ()
    test: tuple[Example, ...]

    def model_post_init(self, context: Any) -> None:
        """Check what single fields cannot."""
        if self.scorer not in SCORERS:
            raise InvalidInput(f"Unknown scorer '{self.scorer}': use one of {', '.join(sorted(SCORERS))}.")
        if not self.test:
            raise InvalidInput(f"Task '{self.name}' has no test examples: add at least one row to the test split.")
        counts = Counter(example.id for split in SPLITS for example in getattr(self, split))
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise InvalidInput(f"Task '{self.name}' uses the id '{repeated[0]}' more than once: make every id unique.")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that a score depends on."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def prompt(self, example: Example) -> str:
        """The text sent to a model for an example."""
        return f"{self.instruction}\n\n{example.prompt}" if self.instruction else example.prompt

    def score(self, example: Example, answer: str) -> float:
        """How good an answer is, 0 to 1."""
        return SCORERS[self.scorer](answer, example.answer)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, split))} {split}" for split in SPLITS)
        return f"Task({self.name!r}: {sizes}; scored by {self.scorer})"

    __str__ = __repr__


class Text(BaseModel):
    """A text cut into token windows: the first calibrate, the last are scored by perplexity.

    Attributes:
        window: tokens in a window.
        calibration: how many windows, from the start, are for calibration.
        test: how many windows, from the end, are scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))
    name: str
    text: str = Field(repr=False)
    window: int = Field(ge=2)
    calibration: int = Field(ge=0)
    test: int = Field(ge=1)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that a score depends on."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def windows(self, tokenizer: PreTrainedTokenizerBase, split: str) -> list[list[int]]:
        """Token ids of the windows of a split, each ``(window,)``.

        Raises:
            InvalidInput: the text is too short for the windows asked for.
        """
        ids = tokenizer(self.text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        whole = len(ids) // self.window
        if whole < self.calibration + self.test:
            raise InvalidInput(
                f"'{self.name}' has {whole} windows of {self.window} tokens, fewer than the {self.calibration} + "
                f"{self.test} asked for: use a shorter window or fewer of them."
            )
        chosen = range(self.calibration) if split == "calibration" else range(whole - self.test, whole)
        return [ids[i * self.window : (i + 1) * self.window] for i in chosen]

    def __repr__(self) -> str:
        return f"Text({self.name!r}: windows of {self.window} tokens, {self.calibration} calibrate, {self.test} test)"

    __str__ = __repr__


def read_text(path: str | Path, window: int = 512, calibration: int = 16, test: int = 32) -> Text:
    """Read a text file, or every .txt and .md file of a folder in name order (README left out), as token windows."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in {".txt", ".md"} and p.stem.upper() != "README")
    else:
        files = [path]
    texts = [_read(file) for file in files]
    if not any(text.strip() for text in texts):
        raise InvalidInput(f"'{path}' holds no text: name a text file or a folder of .txt or .md files.")
    try:
        return Text(name=path.stem, text="\n\n".join(texts), window=window, calibration=calibration, test=test)
    except ValueError as error:
        raise InvalidInput(f"Cannot cut '{path}' into windows: {_first_reason(error)}.") from None


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
    optionally ``task.json`` with name, instruction, scorer and max_new_tokens. A single file, or a data set with one
    split, is divided by a seeded shuffle.

    Args:
        columns: our names (id, prompt, answer, choices, document) to the source's names.

    Raises:
        InvalidInput: a malformed row, named by file and line; a missing column; a repeated id; no examples.
        NotAvailable: nothing on disk has that name and the hub cannot be reached.
    """
    path = Path(source)
    fields: dict[str, Any] = {"name": path.stem}
    if path.is_dir():
        fields |= _settings(path / "task.json")
        files = {split: file for split in SPLITS if (file := _split_file(path, split))}
        if "test" not in files:
            raise InvalidInput(f"'{path}' has no test.jsonl, test.csv or test.parquet: add the test split.")
        splits = {split: _examples(_rows(file), file.name, columns) for split, file in files.items()}
    elif path.is_file():
        splits = _divide(_examples(_rows(path), path.name, columns))
    else:
        splits = _hub_splits(str(source), columns)
    given = {"name": name, "instruction": instruction, "scorer": scorer, "max_new_tokens": max_new_tokens}
    fields |= {key: value for key, value in given.items() if value is not None} | splits
    try:
        return Task(**fields)
    except InvalidInput:
        raise
    except ValueError as error:
        raise InvalidInput(f"'{source}' is not a task: {_first_reason(error)}.") from None


def _settings(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        settings = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{file.name}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    if not isinstance(settings, dict):
        raise InvalidInput(f"{file.name} must be a JSON object with name, instruction, scorer and max_new_tokens.")
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
        except json.JSONDecodeError as error:
            raise InvalidInput(f"{file.name}, line {number}: not valid JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise InvalidInput(f"{file.name}, line {number}: expected a JSON object, got {type(row).__name__}.")
        yield number, row


def _csv(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(_read(file).splitlines(keepends=True), strict=True)
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
        raise InvalidInput(f"Cannot read '{file.name}' as Parquet: {_first_line(error)}.") from None
    return enumerate(rows, start=1)


READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _hub_splits(source: str, columns: Mapping[str, str] | None) -> dict[str, tuple[Example, ...]]:
    import datasets

    try:
        loaded = datasets.load_dataset(source)
    except Exception as error:  # the library raises a dozen unrelated types for "cannot get it"
        raise NotAvailable(
            f"There is no file or folder '{source}', and it could not be loaded as a data set ({_first_line(error)}): "
            "check the path, or the id and the network."
        ) from None
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
        except ValueError as error:
            raise InvalidInput(f"{origin}, line {number}: {_first_reason(error)}.") from None
    return tuple(examples)


def _divide(examples: tuple[Example, ...]) -> dict[str, tuple[Example, ...]]:
    shuffled = random.Random(0).sample(examples, len(examples))
    train = round(len(shuffled) * SHARES["train"])
    held = round(len(shuffled) * (SHARES["train"] + SHARES["calibration"]))
    held = min(held, max(0, len(shuffled) - 1))
    return {
        "train": tuple(shuffled[:train]),
        "calibration": tuple(shuffled[train:held]),
        "test": tuple(shuffled[held:]),
    }


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file.name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise InvalidInput(f"Cannot read '{file}': {error.strerror}.") from None


def _first_reason(error: ValueError) -> str:
    """The first reason in a pydantic error, in words."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return _first_line(error)
    first = errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
