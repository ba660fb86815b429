"""Values that know how to show themselves without knowing how they are drawn.

`workbench.display` registers a function for each kind of value and is only imported when something is to be seen, so
that what is measured does not depend on Plotly, and a new figure is one function there.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
FIGURE, HTML, PAGE = "figure", "html", "page"
_ways: dict[tuple[str, str], Callable[..., Any]] = {}


def draws(kind: type, way: str = FIGURE) -> Callable[[F], F]:
    """Register a function that draws a kind of value; its first argument is the value."""

    def register(function: F) -> F:
        _ways[_key(kind, way)] = function
        return function

    return register


def drawn(value: Any, way: str = FIGURE, /, **options: Any) -> Any:
    """The value as the function registered for its kind draws it."""
    import_module("workbench.display")
    return _ways[_key(type(value), way)](value, **options)


def _key(kind: type, way: str) -> tuple[str, str]:
    return f"{kind.__module__}.{kind.__qualname__}", way


class Drawn:
    """A value that a notebook shows as its figure."""

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(drawn(self))  # type: ignore[no-untyped-call]
