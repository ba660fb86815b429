"""Measurements as records, and the file they are kept in: one JSON line a run, safe to read while it is written."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.estimate import Estimate
from workbench.recipe import Recipe, step_from_json


class Run(BaseModel):
    """One measurement of one variant.

    Attributes:
        variant: its name.
        source: what its model was loaded from.
        recipe: the steps that made it, as `Step.to_json` writes them.
        task: the task's name.
        fingerprint: of the task; runs on different fingerprints cannot be compared.
        environment: device, threads and versions; likewise.
        settings: how it was measured (examples, rounds, new tokens); likewise.
        session: runs of one session were interleaved and are paired.
        measured_at: UTC time, ISO 8601.
        estimates: by metric name.
        samples: by sample name, one number a round or an example; what the estimates were made from.
        beginning: what stood before every window of a text, as the tokenizer spells it; empty for nothing. Runs of one
            source with another beginning cannot be compared.
        layers: how its weights are stored, in words.
        notes: what a reader should know of how it was made and measured, in sentences.
        caveats: why its steps may not have made it faster, said where they did not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    variant: str
    source: str
    recipe: list[dict[str, JsonValue]]
    task: str
    fingerprint: str
    environment: dict[str, str]
    settings: dict[str, int]
    session: str
    measured_at: str
    estimates: dict[str, Estimate] = {}
    samples: dict[str, list[float]] = {}
    beginning: str = ""
    layers: str = ""
    notes: list[str] = []
    caveats: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _sorted_notes(cls, record: Any) -> Any:
        """Older runs kept everything among the notes."""
        if not isinstance(record, dict) or "caveats" in record or not isinstance(record.get("notes"), list):
            return record
        kinds: dict[str, list[str]] = {"weights: ": [], "no": [], "": []}
        for note in map(str, record["notes"]):
            kind = "weights: " if note.startswith("weights: ") else "no" if re.match("not? faster", note) else ""
            kinds[kind].append(note)
        layers = "".join(kinds["weights: "]).removeprefix("weights: ")
        return record | {"layers": layers, "caveats": kinds["no"], "notes": kinds[""]}

    def __getitem__(self, metric: str) -> Estimate:
        if metric not in self.estimates:
            raise InvalidInput(f"This run has no '{metric}': it has {', '.join(self.estimates)}.")
        return self.estimates[metric]

    @property
    def steps(self) -> Recipe:
        """The recipe as steps that can be applied again."""
        return Recipe(step_from_json(dict(record)) for record in self.recipe)


class RunStore:
    """Runs in a file, one JSON line each, appended whole.

    Several notebooks may append and read at once. A process killed while writing loses at most its own line: a line
    that is cut off is skipped when reading and closed before the next append.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path or os.environ.get("WORKBENCH_RUNS") or "runs/runs.jsonl")

    def append(self, run: Run) -> None:
        """Add a run.

        Raises:
            WorkbenchError: the file cannot be written.
        """
        line = run.model_dump_json().encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _ends_in_newline(file.fileno()):
                    line = b"\n" + line
                os.write(file.fileno(), line)
                os.fsync(file.fileno())
        except OSError as error:
            raise WorkbenchError(f"The run could not be added to '{self.path}': {error.strerror}.") from None

    def __iter__(self) -> Iterator[Run]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield Run.model_validate_json(line)
                except ValidationError:  # cut off by a kill, or not yet written to its end
                    continue

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _ends_in_newline(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"


def runs_from_json(text: str) -> list[Run]:
    """The runs of a saved comparison.

    Raises:
        InvalidInput: the text is not one.
    """
    try:
        records = json.loads(text)["runs"]
        return [Run.model_validate(record) for record in records]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput("This is not a saved comparison: save one with comparison.save(path).") from None
