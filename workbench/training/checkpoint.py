"""Where a training stands, on disk: written now and then, read by the same training if its process was killed."""

import contextlib
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.core import files

SECONDS = 60.0  # between two checkpoints, at least
SHARE = 20  # times as long is trained as writing one took
KEPT_BYTES = 8 << 30  # in a folder of the cache
DAY = 86_400.0  # seconds


def place(*facts: str) -> Path:
    """The file of one training: whatever the process, the same facts share it."""
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    return files.cache_folder() / "training" / f"{name}.safetensors"


def write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write whole or not at all. A full disk is no reason to stop training: nothing is kept then."""
    with contextlib.suppress(OSError, SafetensorError):
        with files.whole(path) as temporary:
            whole = {name: each.contiguous() for name, each in tensors.items()}
            save_file(whole, temporary, {"record": json.dumps(record)})
        forget_oldest(path.parent)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What was written; None if there is nothing, or nothing whole."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["record"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def forget_oldest(place: Path) -> None:
    """Remove from a folder what was written longest ago until the rest fits; what is open stays readable meanwhile.

    What was left half written is removed after a day: until then it may be somebody's work.
    """
    with contextlib.suppress(OSError):
        found = sorted(place.iterdir(), key=lambda each: each.stat().st_mtime)
        whole = [each for each in found if not each.name.startswith(".")]
        sizes = {each: sum(file.stat().st_size for file in (each, *each.glob("*")) if file.is_file()) for each in whole}
        torn = [each for each in found if each not in sizes and time.time() - each.stat().st_mtime > DAY]
        for oldest in (*torn, *whole[:-1]):
            if oldest in sizes and sum(sizes.values()) <= KEPT_BYTES:
                break
            sizes.pop(oldest, None)
            shutil.rmtree(oldest) if oldest.is_dir() else oldest.unlink()


def remove(path: Path) -> None:
    """The training has ended."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
