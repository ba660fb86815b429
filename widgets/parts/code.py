"""Settings as code: the call that makes a variant, and a button that copies it."""

import keyword
import re
from pathlib import Path

from widgets.parts.page import Page
from workbench.step import Step
from workbench.steps import families
from workbench.variant import Variant


class Snippet(Page):
    """Code that can be selected, with a button that copies it."""

    _esm = Path(__file__).with_name("snippet.js")


def call(base: Variant, target: Variant, step: Step) -> str:
    """The statement that applies a step; from the base if the target was made from it, else from the bench's list."""
    before = base.recipe.steps
    if target.root == base.root and target.recipe.steps[: len(before)] == before:
        source, steps = "base", [*target.recipe.steps[len(before) :], step]
    else:
        source, steps = f"bench.variants[{target.name!r}]", [step]
    applied = "".join(f".apply({each!r}{', task' if each.needs_data else ''})" for each in steps)
    return f"{variable(step.label)} = {source}{applied}"


def variable(label: str) -> str:
    """A step's label as a variable name."""
    name = re.sub(r"\W+", "_", label).strip("_").lower() or "variant"
    taken = keyword.iskeyword(name) or name in {"base", "task", "bench", *families()}
    return f"{name}_" if taken else f"v{name}" if name[0].isdigit() else name
