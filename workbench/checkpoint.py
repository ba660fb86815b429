"""Where a training stands, on disk: written now and then, read by the same training if its process was killed."""

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.step import Step
from workbench.storage import cache_folder
from workbench.task import Task, Text
from workbench.variant import Variant

SECONDS = 60.0  # between two checkpoints


def place(variant: Variant, step: Step, task: Task | Text) -> Path:
    """The file of one training: the same variant, step and data share it, whatever the process."""
    facts = [variant.source, variant.recipe.to_json(), step.to_json(), task.fingerprint, str(variant.dtype)]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / "training" / f"{name}.safetensors"


def write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write whole or not at all. A full disk is no reason to stop training: nothing is kept then."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(
                {name: each.contiguous() for name, each in tensors.items()}, temporary, {"record": json.dumps(record)}
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What was written; None if there is nothing, or nothing whole."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["record"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def remove(path: Path) -> None:
    """The training has ended."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
