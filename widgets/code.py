"""Settings as code: the call that makes a variant, and a button that copies it."""

import keyword
import re
from pathlib import Path

import anywidget
import traitlets

from workbench.step import Recipe, Step
from workbench.steps import families


class Snippet(anywidget.AnyWidget):
    """Code that can be selected, with a button that copies it.

    Attributes:
        code: the text.
    """

    _esm = Path(__file__).with_name("snippet.js")
    code = traitlets.Unicode("").tag(sync=True)


def call(base: Recipe, made: Recipe, step: Step, target: str) -> str:
    """The statement that applies a step; from the base if the target was made from it, else from the bench's list.

    Args:
        base: the base's recipe.
        made: the target's recipe.
        target: the target's name.
    """
    own = made.steps[len(base) :]
    if made.steps[: len(base)] == base.steps:
        source, steps = "base", [*own, step]
    else:
        source, steps = f"bench.variants[{target!r}]", [step]
    applied = "".join(f".apply({each!r}{', task' if each.needs_data else ''})" for each in steps)
    return f"{variable(step.label)} = {source}{applied}"


def variable(label: str) -> str:
    """A step's label as a variable name."""
    name = re.sub(r"\W+", "_", label).strip("_").lower() or "variant"
    return (
        f"{name}_"
        if keyword.iskeyword(name) or name[0].isdigit() or name in {"base", "task", "bench", *families()}
        else name
    )
