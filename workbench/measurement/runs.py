"""Measurements as records, and the file they are kept in."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from workbench.core import files
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.estimate import Estimate
from workbench.core.value import Value
from workbench.measurement.records import Records
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


class RunStore(Records[Run]):
    """Runs in a file; by default the one that ``$WORKBENCH_RUNS`` names, or ``runs/runs.jsonl``."""

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__(Path(path or os.environ.get("WORKBENCH_RUNS") or "runs/runs.jsonl"), Run)

    def append(self, record: Run) -> None:
        """Add a run; `history` finds it from any folder.

        Raises:
            WorkbenchError: the file cannot be written.
        """
        super().append(record)
        _remember(self.path.resolve())


class _Place(Value):
    """Where runs are kept."""

    path: str


def _places() -> Records[_Place]:
    return Records(files.cache_folder() / "stores.jsonl", _Place)


def known_stores() -> tuple[Path, ...]:
    """Every file that runs of this machine were kept in, as long as it is there."""
    own = RunStore().path.resolve()
    found = dict.fromkeys([*(Path(each.path) for each in _places()), own])
    return tuple(path for path in found if path.exists())


def _remember(path: Path) -> None:
    """Note a file of runs; where the cache cannot be written, it is found from its own folder only."""
    if str(path) not in {each.path for each in _places()}:
        with contextlib.suppress(WorkbenchError):
            _places().append(_Place(path=str(path)))


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
