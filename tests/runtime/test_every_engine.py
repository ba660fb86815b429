"""Every way to run a model, with what every family makes of it: the same greedy tokens, or refused in a sentence."""

import pytest

import workbench as wb
from workbench.core.errors import WorkbenchError
from workbench.measurement.agreement import agreement
from workbench.steps import context, distil, families, finetune, output, prompt, prune, quantize

QUESTIONS = ("What is a lobster?", "How many seats does the boat have?", "Rain")
TOKENS = 12
QUICK = {"Compile": {"how": "blocks", "longest": 256}}  # the whole model is traced in tests of its own
ENGINES = [step(**QUICK.get(step.__name__, {})) for step in families()["runtime"] if step.__name__ != "Auto"]
OTHERS: dict[str, tuple[wb.Step, ...]] = {
    "dense": (),
    "prompt": (prompt.FewShot(examples=2), prompt.Constrain(form="choices", rule="rain\nsnow")),
    "context": (context.Truncate(),),
    "output": (output.Stop(strings="zz"),),
    "prune": (prune.Wanda(sparsity=0.3),),
    "Int8": (quantize.Int8(),),
    "RTN": (quantize.RTN(bits=4, group_size=32),),
    "NF4": (quantize.NF4(),),
    "KVCache": (quantize.KVCache(),),
    "finetune": (finetune.LoRA(),),
    "distil": (prune.DropBlocks(share=0.5, order="last"), distil.ForwardKL()),
}


def attempt(variant: wb.Variant, steps: tuple[wb.Step, ...], task: wb.Task) -> wb.Variant | None:
    """What the steps make; None where one refuses in a sentence."""
    said = ""
    for step in steps:
        try:
            variant = variant.apply(step, task if step.needs_data else None)
        except WorkbenchError as refused:
            said = str(refused)
            break
    assert not said or (said.endswith(".") and "\n" not in said)
    return None if said else variant


def answers(variant: wb.Variant) -> list[tuple[int, ...]]:
    return [variant.generate(question, max_new_tokens=TOKENS).token_ids for question in QUESTIONS]


@pytest.fixture(scope="module")
def said() -> dict[str, list[tuple[int, ...]]]:
    """What is answered without an engine, by what was applied: asked once, as every engine meets the same weights."""
    return {}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("engine", ENGINES, ids=lambda step: step.label)
def test_same_tokens_or_refused(engine: wb.Step, other: str, base: wb.Variant, tiny_task: wb.Task, said) -> None:
    plain = attempt(base, OTHERS[other], tiny_task)
    assert plain is not None
    if other not in said:
        said[other] = answers(plain)
    wanted = said[other]
    run = attempt(plain, (engine,), tiny_task)
    if run is not None:
        check(plain, wanted, run)
    before = attempt(base, (engine,), tiny_task)
    after = before and attempt(before, OTHERS[other], tiny_task)
    if after is not None and other not in ("finetune", "distil"):  # what is learned depends on what is answered
        check(plain, wanted, after)
    assert run is not None or after is not None or other in ("KVCache",), "there must be a way to have both"


def check(plain: wb.Variant, wanted: list[tuple[int, ...]], run: wb.Variant) -> None:
    """The same answers; where weights or activations are rounded once more, first differences are near ties."""
    if answers(run) != wanted:
        assert run.engine.starts(run.model, 1) == "elsewhere", run.engine
        assert agreement(plain, run, QUESTIONS, TOKENS).holds
