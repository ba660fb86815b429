"""Which weights a model has: what tells them from any others, and whether they are still the same."""

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.models import sharing

WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes a number

_marks: "WeakKeyDictionary[nn.Module, tuple[list[dict[str, Any]], int]]" = WeakKeyDictionary()
_known: "WeakKeyDictionary[nn.Module, tuple[int, str]]" = WeakKeyDictionary()


def marks(model: nn.Module) -> int:
    """Another number once a tensor or a layer of the model was replaced, or written to; found in a fraction of a ms.

    It tells nothing about the weights, and is good for this process only.
    """
    tables, before = _marks.get(model, ([], 0))
    now = _marked(tables)
    if not tables or now != before:  # walking through all modules takes longest
        parts = [each for module in model.modules() for each in (module._parameters, module._buffers, module._modules)]
        tables = [each for each in parts if each]
        now = _marked(tables)
        _marks[model] = (tables, now)
    return now


def _marked(tables: list[dict[str, Any]]) -> int:
    return hash(tuple([_mark(value) for each in tables for value in each.values()]))


def _mark(value: Any) -> Any:
    """Which tensor it is, and how often it was written to, where torch counts that."""
    return (id(value), value._version) if isinstance(value, Tensor) and not value.is_inference() else id(value)


def identity(model: Any) -> str:
    """Hash of what a model computes: the same for the same weights loaded anew, remembered until one is changed.

    Beside what `sharing.fingerprint` looks at, all of every tensor counts, as a sum of its bits.
    """
    now = marks(model)
    held = _known.get(model)
    if held is None or held[0] != now:
        sums = [(name, _sum(tensor)) for name, tensor in sorted(model.state_dict().items())]
        found = hashlib.sha256(f"{sharing.fingerprint(model)} {sums}".encode()).hexdigest()
        held = _known[model] = (now, found)
    return held[1]


def _sum(tensor: Tensor) -> int:
    """Of all the bits of a tensor, as whole numbers."""
    plain = tensor.detach()
    return int(plain.view(WHOLE[plain.element_size()]).sum()) if plain.element_size() in WHOLE else 0
