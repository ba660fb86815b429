"""How one packed layer is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Tensors = dict[str, Tensor]
JSON = dict[str, Any]
Reader = Callable[[JSON, Tensors, JSON], Tensors]  # options, tensors and facts -> what `saved_tensors` gave


@dataclass(frozen=True, eq=False)
class Form:
    """One packed module as files hold it.

    Attributes:
        reader: who gives its `saved_tensors` back, a key of `READERS`.
        tensors: what any reader takes, by name within the module, the bias aside.
        library: who reads it packed; forms of one file have the same. Empty where other readers see a dense weight.
        scheme: what config.json says of such layers.
        own: what only our reader takes.
        facts: JSON values that our reader needs besides the module's options.
    """

    reader: str
    tensors: Tensors
    library: str = ""
    scheme: JSON = field(default_factory=dict)
    own: Tensors = field(default_factory=dict)
    facts: JSON = field(default_factory=dict)


def parts_of(path: str, tensors: Tensors) -> Tensors:
    """Take the tensors of the module at a path out, by their names in it."""
    names = [name for name in tensors if name.startswith(f"{path}.")]
    return {name.removeprefix(f"{path}."): tensors.pop(name) for name in names}


def bias_of(parts: Tensors) -> Tensors:
    """The bias of a layer, if it has one."""
    return {"bias": parts["bias"]} if "bias" in parts else {}
