"""The variants of a bench by name: which are chosen, which put away, what each looks like in lists and charts."""

import itertools
import threading
from collections.abc import Callable

from widgets.parts.names import told_apart
from workbench.answering.speaker import Respondent
from workbench.core import files
from workbench.core.errors import InvalidInput
from workbench.display import COLOURS
from workbench.variant import Variant


class Shelf:
    """Variants and endpoints by name, in the order in which they came.

    Attributes:
        base: the first variant; it cannot be removed.
        lock: held while variants or what is on screen change; never while a model works.
    """

    def __init__(self, base: Variant) -> None:
        if not isinstance(base, Variant):
            raise InvalidInput(f"Bench() takes a variant, such as workbench.load(), not {type(base).__name__}.")
        self.base = base
        self.lock = threading.RLock()
        self._variants: dict[str, Respondent] = {base.name: base}
        self._chosen = {base.name: None}  # an ordered set: the last one chosen is at its end
        self._archived: set[str] = set()
        self._looks = {base.name: 0}
        self._next_look = itertools.count(1)
        self._seconds: dict[str, float] = {}
        self._watchers: list[Callable[[], None]] = []

    @property
    def variants(self) -> dict[str, Variant]:
        """The variants by name, the base first; a copy."""
        with self.lock:
            return {name: each for name, each in self._variants.items() if isinstance(each, Variant)}

    @property
    def respondents(self) -> dict[str, Respondent]:
        """Variants and endpoints by name, in the order of the list; a copy."""
        with self.lock:
            return dict(self._variants)

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the variants chosen for chat and comparison, in the order of the list."""
        with self.lock:
            return tuple(name for name in self._variants if name in self._chosen)

    def newest_chosen(self, most: int) -> tuple[str, ...]:
        """Those that were chosen last, at most so many, in the order of the list."""
        with self.lock:
            last = list(self._chosen)[-most:]
            return tuple(name for name in self._variants if name in last)

    @property
    def archived(self) -> frozenset[str]:
        """Names of the variants that were put away: still there, but neither chosen nor offered."""
        with self.lock:
            return frozenset(self._archived)

    def choose(self, name: str, chosen: bool = True) -> None:
        """Choose a variant for chat and comparison, or no longer; one that was put away comes back by it."""
        self.choose_all([name], chosen)

    def choose_all(self, names: list[str], chosen: bool = True) -> None:
        """Choose several at once, or no longer.

        Raises:
            InvalidInput: there is no such variant.
        """
        with self.lock:
            for name in names:
                self[name]
            for name in names:
                self._chosen.pop(name, None)
                if chosen:
                    self._chosen[name] = None
                    self._archived.discard(name)
            self._changed()

    def archive(self, *names: str, away: bool = True) -> None:
        """Put variants away, or get them back: what is put away keeps its memory and is not offered anywhere.

        Raises:
            InvalidInput: the base is among them, or there is no such variant.
        """
        with self.lock:
            for name in names:
                if self[name] == self.base:
                    raise InvalidInput(f"'{name}' is the baseline of this bench and cannot be archived.")
            for name in names:
                (self._archived.add if away else self._archived.discard)(name)
                if away:
                    self._chosen.pop(name, None)
            self._changed()

    def look(self, name: str) -> int:
        """The number of the look, colour and pattern, that a name keeps in lists and charts, also once it is gone."""
        with self.lock:
            if name not in self._looks:
                self._looks[name] = next(self._next_look)
            return self._looks[name]

    def colour(self, name: str) -> str:
        """The colour that goes with its look."""
        return COLOURS[self.look(name) % len(COLOURS)]

    def __getitem__(self, name: str) -> Respondent:
        with self.lock:
            if name not in self._variants:
                raise InvalidInput(f"There is no variant '{name}' in this bench: it has {', '.join(self._variants)}.")
            return self._variants[name]

    def parent(self, name: str) -> str | None:
        """The nearest variant on the list that one was made from; None for what was loaded."""
        with self.lock:
            variant = self[name]
            if not isinstance(variant, Variant):
                return None
            known = {each: other for other, each in self.variants.items()}
            return next((known[each] for each in variant.ancestors if each in known), None)

    def add(self, variant: Respondent, seconds: float = 0.0) -> str:
        """Put a variant or an endpoint on the list; returns its name.

        If the name is taken, what is different about it is added, or else a number.

        Args:
            variant: what is added.
            seconds: that making it took, where that is known.
        """
        if not isinstance(variant, Respondent):
            raise InvalidInput(f"bench.add() takes a variant or an endpoint, not {type(variant).__name__}.")
        with self.lock:
            for name, each in self._variants.items():
                if each == variant:  # whatever it is called elsewhere
                    return name
            name = self._free_name(variant)
            if name != variant.name:
                variant = variant.under(name)
            self._variants[name] = variant
            self._chosen[name] = None
            self._seconds[name] = seconds
            self._changed()
        return name

    def remove(self, name: str) -> None:
        """Take a variant off the list; its memory returns once nothing else uses it.

        Raises:
            InvalidInput: it is the base, or there is no such variant.
        """
        with self.lock:
            if self[name] == self.base:
                raise InvalidInput(f"'{name}' is the baseline of this bench and cannot be removed.")
            del self._variants[name]
            self._chosen.pop(name, None)
            self._archived.discard(name)
            self._seconds.pop(name, None)
            self._changed()

    def rename(self, old: str, new: str) -> None:
        """Give a variant another name.

        Raises:
            InvalidInput: the name is taken or unsafe, or there is no such variant.
        """
        with self.lock:
            variant = self[old]
            new = files.check_name(new.strip())
            if new == old:
                return
            if new in self._variants:
                raise InvalidInput(f"There is already a variant '{new}': choose another name.")
            renamed = variant.under(new)
            if variant == self.base:
                self.base = renamed
            self._variants = {new if name == old else name: each for name, each in self._variants.items()}
            self._variants[new] = renamed
            self._looks[new] = self.look(old)
            del self._looks[old]
            self._seconds[new] = self._seconds.pop(old, 0.0)
            self._chosen = {new if name == old else name: None for name in self._chosen}
            self._archived = {new if name == old else name for name in self._archived}
            self._changed()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call this whenever the list of variants, or what is chosen, has changed."""
        self._watchers.append(changed)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()

    def _free_name(self, variant: Respondent) -> str:
        if variant.name not in self._variants:
            return variant.name
        name = variant.name
        if isinstance(variant, Variant):
            name = told_apart(variant, self.variants.values())
        numbered = (f"{name} {number}" for number in itertools.count(2))
        return next(each for each in itertools.chain([name], numbered) if each not in self._variants)
