"""What an object stays when it is replaced by another under a new name: its age, and who stands for it now."""

import itertools
import weakref
from typing import Any

_births = itertools.count()
_lives: "weakref.WeakSet[Life]" = weakref.WeakSet()


class Life:
    """One thing under any number of names.

    Attributes:
        born: its number; what is older has a smaller one.
    """

    def __init__(self) -> None:
        self.born = next(_births)
        self._names: list[weakref.ref[Any]] = []
        _lives.add(self)

    def name(self, bearer: Any) -> None:
        """Another object, the newest, stands for it."""
        self._names = [*(each for each in self._names if each() is not None), weakref.ref(bearer)]

    @property
    def bearers(self) -> list[Any]:
        """The objects that stand for it and are alive, the newest last."""
        return [found for each in self._names if (found := each()) is not None]


def lives() -> list[Life]:
    """Of everything that somebody still holds, the oldest first."""
    return sorted(_lives, key=lambda each: each.born)
