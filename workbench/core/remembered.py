"""What was found out on this machine by trying, kept from one process to the next."""

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from workbench.core import files
from workbench.core.errors import WorkbenchError


def recall(kind: str, key: Any) -> Any:
    """What was remembered of this kind under a key; None if nothing is there, or nothing that can be read."""
    try:
        return json.loads(_place(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def remember(kind: str, key: Any, found: Any) -> None:
    """Keep a JSON value; where the cache cannot be written, it is found out again next time."""
    with suppress(WorkbenchError):
        files.write_text(_place(kind, key), json.dumps(found))


def _place(kind: str, key: Any) -> Path:
    return files.cache_folder() / kind / f"{sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.json"
