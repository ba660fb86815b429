"""Steps and recipes: frozen values that say plainly what is wrong with them."""

import json

import pytest

from workbench import Recipe, Step
from workbench.core.errors import InvalidInput
from workbench.recipe import step_from_json
from workbench.steps import families, prompt, quantize

EVERY = [step for steps in families().values() for step in steps]


def sentence(error: pytest.ExceptionInfo[InvalidInput]) -> str:
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_families_hold_the_shipped_steps() -> None:
    found = families()
    assert {"NF4", "FP4", "LLMInt8", "Int8", "Int8Dynamic"} <= {step.__name__ for step in found["quantize"]}
    assert prompt.System in found["prompt"]
    assert all(step.family() == family for family, steps in found.items() for step in steps)


@pytest.mark.parametrize("step", EVERY, ids=lambda step: step.full_name())
def test_defaults_round_trip_through_json_and_python(step: type[Step]) -> None:
    made = step()
    again = step_from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    assert hash(again) == hash(made)
    assert type(again) is step
    names = {family: __import__(f"workbench.steps.{family}", fromlist=["_"]) for family in families()}
    assert eval(repr(made), names) == made


def test_recipe_round_trips_through_json_and_python() -> None:
    text = 'He said "hi"\nthen \\ left — ünïcödé <|im_start|>'
    recipe = Recipe([prompt.System(text=text), quantize.NF4(block_size=128), quantize.LLMInt8(threshold=2.5)])
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert eval(repr(recipe), {"Recipe": Recipe, "prompt": prompt, "quantize": quantize}) == recipe
    assert hash(Recipe.from_json(recipe.to_json())) == hash(recipe)
    assert [step.label for step in recipe] == ["System", "NF4", "LLMInt8"]
    assert len(recipe) == 3
    assert len(Recipe()) == 0


def test_repr_shows_only_what_was_changed() -> None:
    assert repr(quantize.NF4()) == "quantize.NF4()"
    assert repr(quantize.NF4(block_size=32)) == "quantize.NF4(block_size=32)"


def test_then_leaves_the_recipe_as_it_was() -> None:
    first = Recipe([quantize.NF4()])
    assert len(first.then(quantize.Int8())) == 2
    assert len(first) == 1


@pytest.mark.parametrize("step", EVERY, ids=lambda step: step.full_name())
def test_steps_are_frozen(step: type[Step]) -> None:
    made = step()
    for knob in step.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(made, knob, getattr(made, knob))


@pytest.mark.parametrize("step", EVERY, ids=lambda step: step.full_name())
def test_an_unknown_knob_is_named_with_those_there_are(step: type[Step]) -> None:
    with pytest.raises(InvalidInput) as caught:
        step(wings=2)
    message = sentence(caught)
    assert "'wings'" in message
    assert all(knob in message for knob in step.model_fields)


@pytest.mark.parametrize(
    ("make", "knob"),
    [
        (lambda: quantize.NF4(block_size=65), "block_size"),
        (lambda: quantize.LLMInt8(threshold=-1), "threshold"),
        (lambda: quantize.LLMInt8(threshold=float("nan")), "threshold"),
        (lambda: quantize.LLMInt8(threshold=float("inf")), "threshold"),
        (lambda: quantize.LLMInt8(threshold="hot"), "threshold"),
        (lambda: quantize.Int8(head="perhaps"), "head"),
        (lambda: prompt.System(text=7), "text"),
        (lambda: prompt.System(text="x" * 30_000), "text"),
        (lambda: prompt.System(text="a\nb\n" * 10_000), "text"),
    ],
)
def test_a_knob_out_of_range_is_named_in_one_sentence(make, knob: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert knob in sentence(caught)


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ('[{"step": "magic.Wand"}]', "magic.Wand"),
        ("[{}]", "None"),
        ('[{"step": ["NF4"]}]', "NF4"),
        ('[{"step": "quantize.NF4", "block_size": 7}]', "block_size"),
        ("{", "JSON"),
        ('{"step": "quantize.NF4"}', "list"),
        ("[1]", "list"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_bad_recipes_are_refused_in_one_sentence(text: str, about: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Recipe.from_json(text)
    assert about in sentence(caught)


def test_abstract_steps_are_not_offered() -> None:
    assert not [step for step in EVERY if step.__name__.startswith("_")]


def test_recipe_applies_every_step_in_order(base) -> None:
    recipe = Recipe([prompt.System(text="Be brief."), quantize.Int8()])
    made = recipe.apply(base)
    assert made.recipe == recipe
    assert made.name == "System+Int8"
    assert Recipe().apply(base) is base
