"""Names that say what is different: "RTN 3 bit g64", where a number would say nothing."""

from collections.abc import Iterable, Iterator
from typing import Any

from workbench.core.errors import InvalidInput
from workbench.core.files import LONGEST_NAME, check_name
from workbench.recipe import RecipeStep
from workbench.variant import Variant

SHORT = {  # how the field writes them; any other knob is written with its name
    "bits": "{} bit",
    "group_size": "g{}",
    "block_size": "b{}",
    "rank": "r{}",
    "sparsity": "{:.3g} sparse",
    "top_k": "top {}",
    "epochs": "{:g} epochs",
    "learning_rate": "rate {:g}",
}
LONGEST_TEXT = 24  # characters of a knob that is text
LONGEST = LONGEST_NAME - 10  # a number may follow


def told_apart(variant: Variant, others: Iterable[Variant]) -> str:
    """A variant's steps, each with the knobs in which another variant of the same steps differs.

    Args:
        variant: the one that is named.
        others: those that it must not be taken for.
    """
    steps = list(variant.recipe)
    alike = [list(each.recipe) for each in others if _kinds(each.recipe) == _kinds(steps)]
    parts = [" ".join([step.label, *_different(step, [each[at] for each in alike])]) for at, step in enumerate(steps)]
    name = "+".join(parts)[:LONGEST].rstrip(" .")
    try:
        return check_name(name)
    except InvalidInput:  # a text with what no file name may have
        return variant.name


def _kinds(steps: Iterable[RecipeStep]) -> list[type[RecipeStep]]:
    return [type(each) for each in steps]


def _different(step: RecipeStep, others: list[RecipeStep]) -> Iterator[str]:
    """The knobs of a step that are not the same in all of the others, in the order of its fields."""
    for name, field in type(step).model_fields.items():
        mine = getattr(step, name)
        if any(getattr(each, name) != mine for each in others) and (said := _said(name, mine, field.default)):
            yield said


def _said(name: str, value: Any, default: Any) -> str:
    words = name.replace("_", " ")
    if value in ("", None, ()):
        return f"no {words}" if default != value else ""
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if name in SHORT and not isinstance(value, str):
        return SHORT[name].format(value)
    if isinstance(value, str):
        text = " ".join("".join(each if each.isalnum() else " " for each in value).split())
        return text[:LONGEST_TEXT].strip()
    return f"{words} {value:.4g}" if isinstance(value, float) else f"{words} {value}"
