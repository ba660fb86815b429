"""A step is a frozen value that makes a new variant; a recipe is the steps that made one."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import InvalidInput
from workbench.progress import Progress
from workbench.value import Value

if TYPE_CHECKING:
    from workbench.task import Task, Text
    from workbench.variant import Variant

REGISTRY: dict[str, type["Step"]] = {}


@dataclass(frozen=True)
class Forecast:
    """What applying a step is expected to cost, said before it is applied.

    Attributes:
        owned_bytes: memory the new variant will own beside what it shares.
        weight_bytes: all the weights it will use, shared ones included.
        seconds: time to apply, from a trial on one layer; None when unknown.
    """

    owned_bytes: int
    weight_bytes: int
    seconds: float | None


class Step(Value):
    """One optimization: its fields are its knobs, its docstring its explanation, `apply` its only verb.

    A concrete step names its `paper` (or reference) and, through its module, its family. Its `caveat` is the reason
    given when a measurement shows that it did not get faster. An `instant` one takes no longer than a token, so that a
    panel may try it out while a knob is moved. Knobs that are `folded` matter to few, and panels show them on request.
    """

    paper: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    needs_data: ClassVar[bool] = False
    instant: ClassVar[bool] = False
    folded: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.paper and not cls.__name__.startswith("_"):
            REGISTRY[cls.full_name()] = cls

    @classmethod
    def family(cls) -> str:
        """The family a step belongs to: the name of its module."""
        return cls.__module__.removeprefix("workbench.steps.").split(".")[0]

    @classmethod
    def full_name(cls) -> str:
        """``family.Class``, as written in code and in JSON."""
        return f"{cls.family()}.{cls.__name__}"

    @property
    def label(self) -> str:
        """Short name for a chart or a list."""
        return type(self).__name__

    def apply(self, variant: "Variant", task: "Task | Text | None", progress: Progress) -> "Variant":
        """Make a new variant; the given one is left as it is."""
        raise NotImplementedError

    def forecast(self, variant: "Variant") -> Forecast:
        """What applying this step to the variant would cost."""
        return Forecast(owned_bytes=0, weight_bytes=variant.total_bytes, seconds=0.0)

    def to_json(self) -> dict[str, Any]:
        """The step's name and all its knobs."""
        return {"step": self.full_name(), **self.model_dump(mode="json")}

    def __repr__(self) -> str:
        changed = {k: getattr(self, k) for k, f in type(self).model_fields.items() if getattr(self, k) != f.default}
        return f"{self.full_name()}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    __str__ = __repr__


def step_from_json(record: dict[str, Any]) -> Step:
    """The step that `Step.to_json` wrote.

    Raises:
        InvalidInput: there is no such step, or a knob is out of range.
    """
    knobs = dict(record)
    name = knobs.pop("step", None)
    if not isinstance(name, str) or name not in REGISTRY:
        near = get_close_matches(str(name), REGISTRY, n=5, cutoff=0.3) or sorted(REGISTRY)[:5]
        raise InvalidInput(f"There is no step '{str(name)[:60]}': use one such as {', '.join(near)}.")
    return REGISTRY[name](**knobs)


@dataclass(frozen=True)
class Recipe:
    """The ordered steps that made a variant; `repr` is runnable Python, `to_json` round-trips."""

    steps: tuple[Step, ...] = ()

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        object.__setattr__(self, "steps", tuple(steps))

    def then(self, step: Step) -> "Recipe":
        """This recipe with one more step."""
        return Recipe((*self.steps, step))

    def apply(
        self, variant: "Variant", task: "Task | Text | None" = None, progress: Progress | None = None
    ) -> "Variant":
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

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"Recipe([{', '.join(map(repr, self.steps))}])"
