"""Values that code and JSON know by a name, ``family.Class``, and the tables by which they are read back."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from workbench.core.errors import InvalidInput
from workbench.core.value import Value

N = TypeVar("N", bound="Named")
NOTEBOOK = "own"  # the family of what a notebook or a script defines itself
SHOWN = 60  # characters of an unknown name that an error quotes


class Named(Value):
    """A value with a family and a name: ours are of the family of their folder, others of their outermost package."""

    @classmethod
    def family(cls) -> str:
        """The family that it belongs to."""
        return family_of(cls.__module__)

    @classmethod
    def full_name(cls) -> str:
        """``family.Class``, as written in JSON and, for what a package holds, in code."""
        return f"{cls.family()}.{cls.__name__}"

    def __repr__(self) -> str:
        changed = {k: getattr(self, k) for k, f in type(self).model_fields.items() if getattr(self, k) != f.default}
        name = type(self).__name__ if self.family() == NOTEBOOK else self.full_name()
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    __str__ = __repr__


def family_of(module: str) -> str:
    """The family of what a module defines."""
    first = module.removeprefix("workbench.").removeprefix("steps.").partition(".")[0]
    return NOTEBOOK if first == "__main__" else first


def register(known: dict[str, type[N]], kind: type[N]) -> None:
    """Put a class into a table; one that is defined anew in the same module takes its own place.

    Raises:
        InvalidInput: another module's class has that name.
    """
    name = kind.full_name()
    if name in known and known[name].__module__ != kind.__module__:
        raise InvalidInput(f"{known[name].__module__} has a '{name}' already: give your class another name.")
    known[name] = kind


def to_json(value: Named, key: str) -> dict[str, Any]:
    """The name, under a key such as "step", and all fields."""
    return {key: value.full_name(), **value.model_dump(mode="json")}


def from_json(known: Mapping[str, type[N]], record: Mapping[str, Any], key: str) -> N:
    """The value that `to_json` wrote. Names with the whole path of the module, as once written, are read as well.

    Raises:
        InvalidInput: there is no such class, or a field is out of range.
    """
    held = dict(record)
    name = held.pop(key, None)
    kind = known.get(_current(name)) if isinstance(name, str) else None
    if kind is None:
        raise InvalidInput(_unknown(known, str(name), key))
    return kind(**held)


def _current(name: str) -> str:
    """``family.Class`` of a name that may be the path of a module and a class."""
    module, _, kind = name.rpartition(".")
    return f"{family_of(module)}.{kind}"


def _unknown(known: Mapping[str, type[Named]], name: str, key: str) -> str:
    said = f"There is no {key} '{name[:SHOWN]}' here"
    if family_of(name) not in {each.partition(".")[0] for each in known}:
        return f"{said}: import the module that defines it, or update the workbench."
    near = get_close_matches(name, known, n=5, cutoff=0.3) or sorted(known)[:5]
    return f"{said}: use one such as {', '.join(near)}, or update the workbench."
