"""Which weights a model has: what tells them from any others, and whether they are still the same."""

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.models import sharing

WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes a number

Tables = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # of tensors and of modules, as the modules hold them

_marks: "WeakKeyDictionary[nn.Module, tuple[Tables, int]]" = WeakKeyDictionary()
_known: "WeakKeyDictionary[nn.Module, tuple[int, str]]" = WeakKeyDictionary()


def marks(model: nn.Module) -> int:
    """Another number once a tensor or a layer of the model was replaced, or written to; found in a fraction of a ms.

    It tells nothing about the weights, and is good for this process only.
    """
    tables, before = _marks.get(model, (None, 0))
    now = _marked(tables) if tables else 0
    if tables is None or now != before:  # walking through all modules takes longest
        modules = list(model.modules())
        tensors = [each for module in modules for each in (module._parameters, module._buffers) if each]
        tables = tensors, [each for module in modules if (each := module._modules)]
        now = _marked(tables)
        _marks[model] = (tables, now)
    return now


def _marked(tables: Tables) -> int:
    """Which tensors and modules they are, and how often each tensor was written to, where torch counts that."""
    tensors, modules = ([value for each in part for value in each.values()] for part in tables)
    try:
        written = [each._version for each in tensors if each is not None]
    except RuntimeError:  # tensors made in inference mode count nothing
        written = [each._version for each in tensors if each is not None and not each.is_inference()]
    return hash((*map(id, tensors), *map(id, modules), *written))


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
