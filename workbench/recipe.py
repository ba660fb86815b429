"""The ordered steps that made a variant, and what an export records of how it was made and how it answers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from workbench.answering.stage import STAGES, Stage, stage_from_json, stage_to_json
from workbench.core import named
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.decoding import Decoding
from workbench.runtime.engine import ENGINES, Eager, Engine

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


def to_record(recipe: Recipe, stages: Sequence[Stage], decoding: Decoding, engine: Engine) -> dict[str, Any]:
    """How a variant was made and how it answers, as JSON values.

    Raises:
        InvalidInput: something in it could not be found again by its name.
    """
    for part, table in ((recipe, REGISTRY), (stages, STAGES), ((engine,), ENGINES)):
        for each in part:
            if each.full_name() not in table:
                how = (
                    "a `paper`, which registers a step" if isinstance(each, RecipeStep) else "a name without underscore"
                )
                raise InvalidInput(f"'{each.full_name()}' could not be read back: give its class {how}.")
    return {
        "recipe": [step.to_json() for step in recipe],
        "stages": [stage_to_json(stage) for stage in stages],
        "decoding": decoding.model_dump(),
        "engine": named.to_json(engine, "engine"),
    }


def from_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, stages, decoding settings and engine of a record; older ones say them in other places.

    Raises:
        InvalidInput: it holds something that is not known here.
    """
    recipe = Recipe(map(step_from_json, record.get("recipe", ())))
    if "stages" in record:
        stages = tuple(map(stage_from_json, record["stages"]))
    else:
        stages = tuple(step for step in recipe if isinstance(step, Stage))
    decoding = dict(record.get("decoding", {}))
    bits = decoding.pop("cache_bits", Eager().cache_bits)
    engine = named.from_json(ENGINES, record["engine"], "engine") if "engine" in record else Eager(cache_bits=bits)
    return {"recipe": recipe, "stages": stages, "decoding": Decoding(**decoding), "engine": engine}
