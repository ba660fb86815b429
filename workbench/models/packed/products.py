"""Which product a packed layer uses on this CPU: tried for its format, its shape, and few or many rows."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core import files
from workbench.core.device import machine
from workbench.core.remembered import recall, remember

Product = Callable[[Any, Tensor], Tensor]  # of a layer and rows ``(n, in)``, to ``(n, out)``
STEP = 2  # a trial stands for up to so many times the rows of the one before: 1, 2, 4, ..., 256 and more
CLEARLY = 0.95  # of the time of the first candidate another must stay below: what differs by noise must not alternate
MOST_ROWS = 256
MOST_OUTPUTS = 4096  # of the weight that is tried: a larger one takes longer, not another product
RUNS, SECONDS = 12, 0.02  # of each candidate in one trial, at most, beside the first one
WORTH_KEEPING = 0.003  # seconds: a shorter trial takes less than writing it down

_found: dict[tuple[str, int], dict[str, float]] = {}
_forced: list[str] = []


@dataclass(frozen=True)
class Trial:
    """What was tried for one format and shape.

    Attributes:
        chosen: name of the fastest candidate; of the first one, where none is clearly faster.
        seconds: by candidate, the least of several runs.
    """

    chosen: str
    seconds: Mapping[str, float]


def rows_tried(count: int) -> int:
    """The number of rows whose trial stands for so many."""
    tried = 1
    while tried < min(count, MOST_ROWS):
        tried *= STEP
    return tried


def product_of(layer: Any, rows: Tensor) -> Product:
    """The product that the layer uses for rows ``(n, in)``."""
    offered: Mapping[str, Product]
    count = min(rows.shape[0], MOST_ROWS)
    if _forced:
        offered = layer.products(rows_tried(count))
        return next((offered[name] for name in _forced if name in offered), next(iter(offered.values())))
    known: Product | None = layer.uses.get((count, rows.dtype))  # for every token and layer: nothing else is done
    if known is None:
        tried = rows_tried(count)
        offered = layer.products(tried)
        alone = next(iter(offered.values())) if len(offered) == 1 else None
        known = layer.uses[count, rows.dtype] = alone or offered[trial(layer, tried, rows.dtype).chosen]
    return known


def trial(layer: Any, count: int, dtype: torch.dtype) -> Trial:
    """What was tried for a layer's format and shape: now, before in this process, or by another on this machine."""
    offered: Mapping[str, Product] = layer.products(count)
    out, columns = layer.out_features, layer.in_features
    options = {name: value for name, value in layer.options.items() if name != "shape"}
    about = [type(layer).__name__, options, min(out, MOST_OUTPUTS), out // columns >= 16, columns, str(dtype), *offered]
    key = json.dumps(about, sort_keys=True), count
    if key not in _found:
        _found[key] = _remembered(key, offered) or _tried(key, layer, offered, dtype)
    first, fastest = next(iter(offered)), min(_found[key], key=_found[key].__getitem__)
    return Trial(fastest if _found[key][fastest] < CLEARLY * _found[key][first] else first, _found[key])


@contextmanager
def forced(*names: str) -> Iterator[None]:
    """Let every layer use the first of these candidates that it has, or its first, whatever is fastest."""
    before, _forced[:] = list(_forced), names
    try:
        yield
    finally:
        _forced[:] = before


def forget() -> None:
    """Forget the trials of this process; those on disk stay, and layers keep what they use."""
    _found.clear()


def _tried(key: tuple[str, int], layer: Any, offered: Mapping[str, Product], dtype: torch.dtype) -> dict[str, float]:
    started = time.perf_counter()
    alike, rows = cycle(layer.samples(MOST_OUTPUTS)), torch.ones(key[1], layer.in_features, dtype=dtype)
    with torch.no_grad():
        found = {name: _first(product, alike, rows) for name, product in offered.items()}
        until = time.perf_counter() + SECONDS
        for _ in range(RUNS):
            for name, product in offered.items():
                if found[name] <= 4 * min(found.values()):  # what is far behind costs too much to try again
                    found[name] = min(found[name], _seconds(product, next(alike), rows))
            if time.perf_counter() > until:
                break
    if time.perf_counter() - started > WORTH_KEEPING:
        remember("products", _about(key), found)
    return found


def _first(product: Product, alike: Iterator[Any], rows: Tensor) -> float:
    """Of a second run, for the first pays for set-up, unless that would take too long."""
    first = _seconds(product, next(alike), rows)
    return first if first > SECONDS else _seconds(product, next(alike), rows)


def _seconds(product: Product, layer: Any, rows: Tensor) -> float:
    started = time.perf_counter()
    product(layer, rows)
    return time.perf_counter() - started


def _remembered(key: tuple[str, int], offered: Mapping[str, Product]) -> dict[str, float] | None:
    """What another process found; a damaged or foreign file counts as none."""
    found = recall("products", _about(key))
    whole = isinstance(found, dict) and found.keys() == offered.keys()
    return found if whole and all(isinstance(each, float) and each > 0 for each in found.values()) else None


def _about(key: tuple[str, int]) -> list[Any]:
    """What a trial is kept for: this machine, what may be used of it, these versions, and what tries it."""
    own = [files.sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    return [*key, machine(torch.device("cpu")), os.environ.get("ATEN_CPU_CAPABILITY", ""), own]
