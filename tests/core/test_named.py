"""Names by which code and JSON know steps, stages and engines."""

from collections.abc import Iterator
from typing import ClassVar

import pytest
from pydantic import Field

from workbench.answering.stage import STAGES, Stage, stage_from_json, stage_to_json
from workbench.core import named
from workbench.core.errors import InvalidInput
from workbench.recipe import REGISTRY, step_from_json
from workbench.runtime.engine import ENGINES, Eager
from workbench.step import Step
from workbench.steps import prompt, retrieve


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    tables = REGISTRY, STAGES, ENGINES
    before = [dict(each) for each in tables]
    yield
    for table, each in zip(tables, before, strict=True):
        table.clear()
        table.update(each)


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("workbench.steps.prompt.wording", "prompt"),
        ("workbench.steps.retrieve", "retrieve"),
        ("workbench.runtime.engine", "runtime"),
        ("steps.prompt.wording", "prompt"),  # as stages were once written
        ("mine.deep.inside", "mine"),
        ("__main__", "own"),
    ],
)
def test_families(module: str, family: str) -> None:
    assert named.family_of(module) == family


def test_stages_are_named_as_steps_are() -> None:
    template = prompt.Template(text="So: {question}")
    assert template.to_json()["step"] == stage_to_json(template)["stage"] == "prompt.Template"
    assert {"prompt.Shots", "retrieve.Lookup"} <= STAGES.keys()
    assert retrieve.Lookup.full_name() == "retrieve.Lookup"
    assert named.to_json(Eager(cache_bits=8), "engine").items() >= {"engine": "runtime.Eager", "cache_bits": 8}.items()


@pytest.mark.parametrize("name", ["prompt.Template", "steps.prompt.wording.Template"])
def test_names_of_every_age_are_read(name: str) -> None:
    assert stage_from_json({"stage": name, "text": "{question}!"}) == prompt.Template(text="{question}!")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("prompt.Gone", "update the workbench"),
        ("steps.prompt.gone.Gone", "update the workbench"),
        ("mine.Shout", "import the module that defines it"),
        ("", "import the module"),
        (None, "import the module"),
        (3, "import the module"),
        (["a"], "import the module"),
        ("x" * 10_000, "import the module"),
    ],
)
def test_what_is_not_there_is_refused_in_words(name: object, why: str) -> None:
    for read, key in ((stage_from_json, "stage"), (step_from_json, "step")):
        with pytest.raises(InvalidInput, match=why) as caught:
            read({key: name})
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)


def made(module: str, name: str = "Shout", **fields: object) -> type[Step]:
    """A step of somebody else's module."""
    return type(name, (Step,), {"__module__": module, "__doc__": "Louder.", "paper": "https://example.org"} | fields)


def test_a_step_of_somebody_else_has_its_own_family() -> None:
    shout = made("mine.deep", __annotations__={"times": int}, times=Field(default=2, ge=1, le=9, description="How."))
    assert shout.family() == "mine"
    assert repr(shout(times=3)) == "mine.Shout(times=3)"
    assert step_from_json(shout(times=3).to_json()) == shout(times=3)
    own = made("__main__")
    assert repr(own()) == "Shout()"
    assert step_from_json(own().to_json()) == own()


def test_a_class_defined_anew_takes_its_own_place_and_no_other() -> None:
    first, second = made("mine"), made("mine")
    assert first is not second
    assert type(step_from_json({"step": "mine.Shout"})) is second
    with pytest.raises(InvalidInput, match="give your class another name"):
        made("mine.elsewhere")
    with pytest.raises(InvalidInput, match="give your class another name"):
        made("prompt.extra", "Template")


def test_a_step_without_a_source_is_no_registered_one() -> None:
    class Draft(Step):
        """Not named by a paper."""

        paper: ClassVar[str] = ""

    assert Draft not in REGISTRY.values()


def test_a_stage_is_registered_by_being_there() -> None:
    class Loud(Stage):
        """Without a step."""

    assert STAGES[Loud.full_name()] is Loud
