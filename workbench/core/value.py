"""Frozen values whose bad input is refused in one plain sentence."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.words import mended

SHOWN = 60  # characters of a bad input that an error quotes


class Value(BaseModel):
    """A frozen record with checked fields; a bad one raises `InvalidInput`, the same from code, a file or a panel."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**{name: mended(value) for name, value in fields.items()})
        except ValidationError as error:
            raise InvalidInput(sentence(type(self), error)) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same with some fields changed, checked like a new one; nothing computed from the old fields is kept."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**fields | dict(update or {}))


def sentence(kind: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, in one sentence."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, WorkbenchError):
        return str(cause)
    field = ".".join(map(str, first["loc"])) or "it"
    if first["type"] == "extra_forbidden":
        return f"{kind.__name__} has no '{field}': it has {', '.join(kind.model_fields) or 'no settings'}."
    if first["type"] == "missing":
        return f"{kind.__name__} needs '{field}'."
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return f"{kind.__name__}: {field} is {shown}, but {message[0].lower()}{message[1:]}."
