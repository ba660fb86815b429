"""What a search may combine: places in a recipe, each with steps to choose from and knobs that are free."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import annotated_types

from workbench.core.errors import InvalidInput
from workbench.recipe import Recipe
from workbench.step import Step
from workbench.steps import families

FAMILIES = ("prune", "quantize")  # that are searched unless others are named
NOTCHES = 20  # values of a knob that is a fraction
WIDE = 1000  # times the least, from which a knob is searched by its logarithm
LEFT_OUT = ("seed",)  # knobs that change nothing to be searched for
NOTHING = "none"
Given = type[Step] | Step | None


@dataclass(frozen=True)
class Knob:
    """A field of a step that is free.

    Attributes:
        name: of the field.
        choices: what it may be, unless it is a number.
        low: the least, of a number.
        high: the most.
        whole: whether it is a whole number.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def ordered(self) -> bool:
        """Whether its choices are numbers, of which near ones are alike."""
        return bool(self.choices) and all(type(each) in (int, float) for each in self.choices)

    def suggested(self, trial: Any, label: str) -> Any:
        """A value, as Optuna's trial says; of several numbers, which one in their order."""
        if self.ordered:
            return sorted(self.choices)[trial.suggest_int(label, 0, len(self.choices) - 1)]
        if self.choices:
            return trial.suggest_categorical(label, self.choices)
        if self.whole:
            return trial.suggest_int(label, int(self.low), int(self.high))
        if self.low > 0 and self.high > WIDE * self.low:
            return float(f"{trial.suggest_float(label, self.low, self.high, log=True):.3g}")
        return round(self.low + trial.suggest_int(label, 0, NOTCHES) * (self.high - self.low) / NOTCHES, 6)


@dataclass(frozen=True)
class Option:
    """A step that a place may have.

    Attributes:
        kind: of the step.
        fixed: values of its other knobs.
        knobs: that are free.
    """

    kind: type[Step]
    fixed: Mapping[str, Any]
    knobs: tuple[Knob, ...]


@dataclass(frozen=True)
class Space:
    """Places of a recipe in their order, each a choice of options; None is no step."""

    places: tuple[tuple[Option | None, ...], ...]

    @property
    def static(self) -> bool:
        """Whether every recipe has the same knobs: none belongs to a step that may not be chosen."""
        return all(len(options) == 1 or not any(each and each.knobs for each in options) for options in self.places)

    def suggested(self, trial: Any) -> Recipe:
        """A recipe, as Optuna's trial says.

        Raises:
            InvalidInput: a step refuses a combination of its knobs.
        """
        chosen = []  # all of them before any step is made: one may refuse, and each trial shall have all its knobs
        for at, options in enumerate(self.places):
            known = {_name(option): option for option in options}
            name = trial.suggest_categorical(f"{at}", tuple(known)) if len(known) > 1 else next(iter(known))
            option = known[name]
            if option is not None:
                free = {knob.name: knob.suggested(trial, f"{at}.{name}.{knob.name}") for knob in option.knobs}
                chosen.append((option.kind, {**option.fixed, **free}))
        return Recipe(kind(**knobs) for kind, knobs in chosen)


def _name(option: Option | None) -> str:
    if option is None:
        return NOTHING
    fixed = ", ".join(f"{name}={value!r}" for name, value in option.fixed.items())
    return f"{option.kind.__name__}({fixed})" if fixed else option.kind.__name__


def free(step: Step, *knobs: str, **values: Iterable[Any]) -> Option:
    """A step of which some knobs are searched and the others stay as they are.

    Args:
        step: whose other knobs stay.
        knobs: names of those that may be anything within their bounds.
        values: of others, what they may be: ``free(RTN(), "group_size", bits=(3, 4, 8))``.

    Raises:
        InvalidInput: it has no such knob, or one that is a text; or a value that it cannot have.
    """
    kind = type(step)
    found = {each.name: each for each in knobs_of(kind)}
    for name in (*knobs, *values):
        if name not in found:
            raise InvalidInput(f"{kind.__name__} has no knob '{name}' to search: it has {', '.join(found) or 'none'}.")
    named = [*(found[name] for name in knobs), *(_listed(kind, name, each) for name, each in values.items())]
    fixed = {name: value for name, value in step.model_dump().items() if name not in {*knobs, *values}}
    changed = {name: value for name, value in fixed.items() if value != kind.model_fields[name].default}
    return Option(kind, changed, tuple(named))


def _listed(kind: type[Step], name: str, values: Iterable[Any]) -> Knob:
    """A knob that may be one of some values."""
    choices = tuple(dict.fromkeys(values))
    if not choices:
        raise InvalidInput(f"Give {name} of {kind.__name__} at least one value to search.")
    for value in choices:
        kind(**{name: value})
    return Knob(name, choices=choices)


def knobs_of(kind: type[Step]) -> tuple[Knob, ...]:
    """What of a step can be searched: numbers between their bounds, choices and switches; texts and seeds aside."""
    found = []
    for name, field in kind.model_fields.items():
        if name in LEFT_OUT or name in kind.folded:
            continue
        if field.annotation is bool:
            found.append(Knob(name, choices=(True, False)))
        elif get_origin(field.annotation) is Literal:
            found.append(Knob(name, choices=get_args(field.annotation)))
        elif field.annotation in (int, float):
            low, high = _bounds(field.metadata, field.annotation is int)
            found.append(Knob(name, low=low, high=high, whole=field.annotation is int))
    return tuple(found)


def _bounds(metadata: Iterable[Any], whole: bool) -> tuple[float, float]:
    """The least and the most that a number may be; one notch inside where a bound itself is left out."""
    low = high = 0.0
    open_low = open_high = False
    for each in metadata:
        match each:
            case annotated_types.Ge(ge=bound) | annotated_types.Gt(gt=bound):
                low, open_low = float(bound), isinstance(each, annotated_types.Gt)  # type: ignore[arg-type]
            case annotated_types.Le(le=bound) | annotated_types.Lt(lt=bound):
                high, open_high = float(bound), isinstance(each, annotated_types.Lt)  # type: ignore[arg-type]
    notch = 1.0 if whole else (high - low) / NOTCHES
    return low + notch * open_low, high - notch * open_high


def space_of(given: Sequence[Any] | None = None) -> Space:
    """What is searched, from families' names, or places that a user lists.

    Args:
        given: of each place the name of a family, a step (its knobs fixed), a class of steps (its knobs free), what
            `free` made, or a list of these, where None is no step. By default pruning and quantization, each or none.

    Raises:
        InvalidInput: something is none of these.
    """
    places = tuple(_place(each) for each in (FAMILIES if given is None else given))
    if not places:
        raise InvalidInput("There is nothing to combine: name at least one family or step.")
    return Space(places)


def _place(given: Any) -> tuple[Option | None, ...]:
    if isinstance(given, str):
        known = families()
        if given not in known:
            raise InvalidInput(f"There is no family '{given[:60]}': there are {', '.join(known)}.")
        return (None, *(Option(kind, {}, knobs_of(kind)) for kind in known[given]))
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise InvalidInput("A place of a recipe to search needs at least one step to choose from.")
    return tuple(map(_option, several))


def _option(given: Any) -> Option | None:
    if given is None or isinstance(given, Option):
        return given
    if isinstance(given, Step):
        return free(given)
    if isinstance(given, type) and issubclass(given, Step):
        return Option(given, {}, knobs_of(given))
    raise InvalidInput(f"A search combines steps, classes of steps and families, not {type(given).__name__}.")
