"""How much memory a device has, and how much of it is free."""

from pathlib import Path
from typing import NamedTuple

import torch

from workbench.core import units
from workbench.core.device import memory_held
from workbench.core.errors import InvalidInput, NotAvailable, OutOfMemory
from workbench.models.headers import Headers, read_headers

LEAST = 256_000_000  # bytes: a smaller model is loaded without looking at what is free
UNLIMITED = 1 << 60  # what a control group without a limit says is about this much


class Room(NamedTuple):
    """Bytes of a device's memory: all of it, what is free, and what this process holds."""

    total: int
    free: int
    held: int


def free_bytes(device: torch.device) -> Room:
    """The memory of a device. On a CPU a limit of the control group (a container's) counts where it is lower."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        return Room(total, max(0, free + reserved - torch.cuda.memory_allocated(device)), reserved)
    total, free = _system()
    for limit, used in _groups():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Room(total, free, memory_held(torch.device("cpu")))


def check_loads(source: str | Path, device: torch.device, dtype: torch.dtype, name: str) -> None:
    """Refuse to load what cannot fit; what has no headers that can be read is left to whoever loads it.

    Args:
        source: a folder, a .gguf file or a hub id.
        device: where the model shall run; it is read into CPU memory first.
        dtype: in which it is loaded.
        name: for people.

    Raises:
        OutOfMemory: its weights are larger than what is free.
    """
    try:
        found = read_headers(source)
    except (InvalidInput, NotAvailable, OSError, ValueError):
        return
    size, kind = found.loaded(dtype.itemsize), str(dtype).removeprefix("torch.")
    for place in dict.fromkeys((torch.device("cpu"), device)):
        room = free_bytes(place)
        if size <= max(LEAST, room.free) or (place.type == "cpu" and found.mapped == kind):
            continue
        raise OutOfMemory(
            f"'{name}' has {units.size(size)} of weights in {kind}, and {place} has {units.size(room.free)} free of "
            f"{units.size(room.total)}: {_advice(found, place, kind)}, or close a variant; nothing was loaded."
        )


def _advice(found: Headers, place: torch.device, kind: str) -> str:
    if place.type != "cpu":
        return "load it with device='cpu', and apply runtime.Offload(to='cpu', device='cuda') to it"
    if found.mapped:
        return f"load it with dtype='{found.mapped}', as its files hold it, which are only read when they are used"
    return "load it with dtype='bfloat16'" if kind == "float32" and not found.packed else "use a smaller one"


def _system() -> tuple[int, int]:
    """All memory and what is available without swapping, as Linux says; psutil knows the other systems."""
    lines = _text(Path("/proc/meminfo")).splitlines()
    found = {line.partition(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    if "MemAvailable" in found and "MemTotal" in found:
        return 1024 * int(found["MemTotal"]), 1024 * int(found["MemAvailable"])
    try:
        import psutil
    except ImportError:
        return UNLIMITED, UNLIMITED
    told = psutil.virtual_memory()
    return int(told.total), int(told.available)


def _groups(root: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """Limit and use of the control groups that this process is in; pages of files that can be dropped are not used."""
    found = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        folder = root / controllers / path.lstrip("/")
        names = ("memory.max", "memory.current") if not controllers else _OLD
        for place in (folder, root / controllers):  # inside a container its own group is the root
            limit, used = (_number(_text(place / name)) for name in names)
            if limit and limit < UNLIMITED:
                found.append((limit, used - _droppable(place)))
    return found


_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _droppable(folder: Path) -> int:
    lines = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if len(line.split()) > 1)
    return _number(lines.get("inactive_file", "")) + _number(lines.get("active_file", ""))


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
