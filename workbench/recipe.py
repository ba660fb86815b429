"""The ordered steps that made a variant, as a value that is written, read back and applied again."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from workbench.core import named
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress

REGISTRY: dict[str, type["RecipeStep"]] = {}


class RecipeStep(named.Named):
    """What a recipe and a variant know of a step; `workbench.step.Step` is all of it."""

    caveat: ClassVar[str] = ""
    needs_data: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Short name for a chart or a list."""
        return type(self).__name__

    def apply(self, variant: Any, task: Any, progress: Progress) -> Any:
        """Make a new variant; the given one is left as it is."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The step's name and all its knobs."""
        return named.to_json(self, "step")


def step_from_json(record: dict[str, Any]) -> RecipeStep:
    """The step that `to_json` wrote.

    Raises:
        InvalidInput: there is no such step, or a knob is out of range.
    """
    return named.from_json(REGISTRY, record, "step")


@dataclass(frozen=True)
class Recipe:
    """The ordered steps that made a variant; `repr` is runnable Python, `to_json` round-trips."""

    steps: tuple[RecipeStep, ...] = ()

    def __init__(self, steps: Iterable[RecipeStep] = ()) -> None:
        object.__setattr__(self, "steps", tuple(steps))

    def then(self, step: RecipeStep) -> "Recipe":
        """This recipe with one more step."""
        return Recipe((*self.steps, step))

    def apply(self, variant: Any, task: Any = None, progress: Progress | None = None) -> Any:
        """Apply every step in order; variants in between are dropped."""
        for step in self.steps:
            variant = variant.apply(step, task, progress)
        return variant

    def to_json(self) -> str:
        """JSON text of the steps with all their knobs."""
        return json.dumps([step.to_json() for step in self.steps])

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe that `to_json` wrote."""
        try:
            records = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply or a number too long")
            raise InvalidInput(f"The recipe is not valid JSON: {reason}.") from None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise InvalidInput("A recipe is a JSON list of steps, each an object with a 'step' name.")
        return cls(step_from_json(record) for record in records)

    def __iter__(self) -> Iterator[RecipeStep]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"Recipe([{', '.join(map(repr, self.steps))}])"
