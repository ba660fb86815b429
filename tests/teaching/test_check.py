"""Labs on a tiny model: the solution passes, and what is often done wrong is named."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab import ROOT

import workbench as wb
from workbench.recipe import REGISTRY
from workbench.steps import finetune, prune, quantize
from workbench.teaching import contract
from workbench.teaching.labs import cells_of

WANDA = {"reference": prune.Wanda(sparsity=0.5)}
ROUNDED = {"bits": 3, "head": False}
GPTQ = {"reference": quantize.GPTQ(act_order=False, **ROUNDED), "ablation": quantize.RTN(**ROUNDED)}
TRAINED = {"learning_rate": 3e-2, "batch_size": 4}
LORA = {"reference": finetune.LoRA(rank=4, **TRAINED)}
Lab = Callable[..., dict[str, Any]]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """What the cells of a lab's solution define, some of its words exchanged as a learner would have written them."""
    before = dict(REGISTRY)

    def run(name: str, words: dict[str, str] | None = None) -> dict[str, Any]:
        source = (ROOT / "labs" / "solutions" / f"{name}.py").read_text(encoding="utf-8")
        for old, new in (words or {}).items():
            assert old in source, "the solution has other words"
            source = source.replace(old, new)
        known: dict[str, Any] = {"__name__": "__main__", "quantize": quantize, "settings": {}}
        for cell, text in cells_of(source).items():
            exec(compile(text, f"{name} {cell}", "exec"), known)
        return known

    yield run
    REGISTRY.clear()
    REGISTRY.update(before)


def named(found: wb.Check) -> str:
    """What is wrong, which must be one thing with one reason."""
    assert not found.passed
    return " ".join(found.mistakes)


def test_wanda_solved(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text) -> None:
    made = lab("01_wanda")
    found = wb.check(made["MyWanda"], tiny, tiny_text, **WANDA, ablation=made["ByChance"], guess=400.0)
    assert found.passed, found
    assert {"neutral", "weights", "number", "ablation"} <= {each.point for each in found.findings}
    numbers = {each.whose: each.value for each in found.numbers}
    assert numbers["yours"].value == pytest.approx(numbers["expected"].value)
    wanda = tiny.apply(prune.Wanda(), tiny_text)
    measured = wb.measure(wanda, tiny_text, rounds=1, new_tokens=2, store=False)["perplexity"]
    assert numbers["expected"].value == pytest.approx(measured.value)
    assert "You guessed 400" in repr(found)
    assert "Without the idea" in found._repr_html_()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"weight.abs() * inputs.norm": "weight.abs()"}, "the score lacks the size of the inputs"),
        ({"group=0, rows=True": "group=0, rows=False"}, "over the whole matrix instead of within each output row"),
        ({"* inputs.norm": "* inputs.norm ** 2"}, "without its square root"),
        ({"weight.abs() *": "weight *"}, "The score has a sign"),
        ({"* inputs.norm": "* inputs.mean"}, "mean size of each input"),
        ({"return weight * keep_mask(score,": "return weight * ~keep_mask(score,"}, "keep what has the lowest score"),
        ({"return weight * keep_mask(score,": "return keep_mask(score,"}, "multiply the weight by it"),
    ],
)
def test_wanda_wrong(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text, words: Any, says: str) -> None:
    made = lab("01_wanda", words=words)
    found = wb.check(made["MyWanda"], tiny, tiny_text, **WANDA, ablation=made["ByChance"])
    assert says in named(found)


def test_gptq_solved(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text) -> None:
    found = wb.check(lab("02_gptq")["MyGPTQ"], tiny, tiny_text, **GPTQ)
    assert found.passed, found


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({" / factor[column, column]": ""}, "not divided by the diagonal of the inverse Cholesky factor"),
        ({"column + 1 :] -= ": "column + 1 :] += "}, "wrong sign"),
        ({"factor[column, column + 1 :]": "factor[column + 1 :, column]"}, "Nothing is passed on"),
        ({") / factor[column, column]": ") / factor[column, column] ** 2"}, "square of the factor's diagonal"),
    ],
)  # fmt: skip
def test_gptq_wrong(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text, words: Any, says: str) -> None:
    found = wb.check(lab("02_gptq", words=words)["MyGPTQ"], tiny, tiny_text, **GPTQ)
    assert says in named(found)


def test_lora_solved(lab: Lab, tiny: wb.Variant, tiny_task: wb.Task) -> None:
    made = lab("03_lora")["MyLoRA"]
    found = wb.check(made, tiny, tiny_task, **LORA, ablation=made(rank=1, alpha=4.0, **TRAINED))
    assert found.passed, found


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"self.alpha / self.rank * (": "("}, "not multiplied by alpha / rank"),
        ({"self.alpha / self.rank * (": "self.alpha * ("}, "divide it by the rank"),
        ({"torch.zeros(out": "torch.ones(out"}, "B is not zero at the start"),
        ({"x @ weight.T + ": ""}, "What the layer itself gives is missing"),
        (
            {"x @ weight.T + self.alpha / self.rank * ": "self.alpha / self.rank * (x @ weight.T + ", "b.T": "b.T)"},
            "All of the layer is multiplied",
        ),
    ],
)
def test_lora_wrong(lab: Lab, tiny: wb.Variant, tiny_task: wb.Task, words: Any, says: str) -> None:
    made = lab("03_lora", words=words)["MyLoRA"]
    assert says in named(wb.check(made, tiny, tiny_task, **LORA, ablation=made(rank=1, alpha=4.0, **TRAINED)))


def test_prediction_solved(lab: Lab, tiny: wb.Variant) -> None:
    found = wb.check(lab("04_predict_the_speed")["MyPrediction"], tiny)
    assert found.passed, found
    assert [each.point for each in found.findings] == ["weight_bytes", "flops", "cache_bytes", "seconds"]
    assert any(each.whose == "measured" and each.value.low < each.value.high for each in found.numbers)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"return 2 * self.weights": "return self.weights"}, "two operations: a multiplication and an addition"),
        ({"return 2 * shape.layers * shape.kv_heads": "return 2 * shape.layers * shape.heads"}, "share kv_heads"),
        ({"return 2 * shape.layers * ": "return shape.layers * "}, "Keys and values are kept: twice as much"),
        ({" * shape.bytes_each * shape.context": " * shape.bytes_each"}, "shape.context tokens were read before"),
        ({"3 * shape.hidden * shape.mlp": "2 * shape.hidden * shape.mlp"}, "three matrices: gate, up and down"),
        ({" + shape.hidden * shape.vocabulary": ""}, "The output head is missing"),
        ({") / shape.bandwidth": ") / shape.bandwidth * 1000"}, "give seconds"),
    ],
)
def test_prediction_wrong(lab: Lab, tiny: wb.Variant, words: Any, says: str) -> None:
    assert says in named(wb.check(lab("04_predict_the_speed", words=words)["MyPrediction"], tiny))


def test_only_dense_decoders_of_the_llama_kind_are_predicted(lab: Lab, tiny: wb.Variant, load_tiny: Any) -> None:
    made = lab("04_predict_the_speed")["MyPrediction"]
    with pytest.raises(wb.WorkbenchError, match="already quantized: predict its dense parent"):
        wb.check(made, tiny.apply(quantize.Int8()))
    with pytest.raises(wb.WorkbenchError, match="GPT2LMHeadModel is no decoder of the Llama kind"):
        wb.check(made, load_tiny("gpt2"))


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_other_architectures(
    lab: Lab, load_tiny: Any, tiny_text: wb.Text, tiny_task: wb.Task, architecture: str
) -> None:
    base, wanda, lora = load_tiny(architecture), lab("01_wanda"), lab("03_lora")["MyLoRA"]
    found = wb.check(wanda["MyWanda"], base, tiny_text, **WANDA, ablation=wanda["ByChance"])
    assert found.passed, found
    found = wb.check(lora, base, tiny_task, **LORA, ablation=lora(rank=1, alpha=4.0, **TRAINED))
    assert found.passed, found


def test_a_hole_is_said_to_be_one(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text) -> None:
    hole = {"score = weight.abs() * inputs.norm": 'raise NotImplementedError("the score")'}
    found = wb.check(lab("01_wanda", words=hole)["MyWanda"], tiny, tiny_text, **WANDA)
    assert named(found) == "MyWanda.change is still to be written: the score."
    fails = lab("01_wanda", words={"* inputs.norm": "* inputs.norms"})["MyWanda"]
    said = named(wb.check(fails, tiny, tiny_text, **WANDA))
    assert re.fullmatch(
        r"MyWanda.change fails, line \d+ of its cell: AttributeError, .*has no attribute 'norms'\.", said
    )


def test_an_ablation_is_wanted_and_must_lack_something(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text) -> None:
    made = lab("01_wanda")
    assert "An ablation is still wanted" in named(wb.check(made["MyWanda"], tiny, tiny_text, **WANDA))
    same = wb.check(made["MyWanda"], tiny, tiny_text, **WANDA, ablation=made["MyWanda"])
    assert "gives the very same" in named(same)
    hole = lab("01_wanda", words={"lots = torch": "raise NotImplementedError\n        lots = torch"})
    missing = wb.check(hole["MyWanda"], tiny, tiny_text, **WANDA, ablation=hole["ByChance"])
    assert "ByChance.change is still to be written" in named(missing)


def test_an_unknown_mistake_names_the_first_layer_that_differs(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text) -> None:
    made = lab("01_wanda", words={"self.sparsity, group=0, rows=True)": "self.sparsity / 2, group=0, rows=True)"})
    said = named(wb.check(made["MyWanda"], tiny, tiny_text, **WANDA, ablation=made["ByChance"]))
    assert "model.layers.0.self_attn.q_proj differs first" in said
    assert "25.0% of its weights are 0, not 50.0%" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"ge=0.0, lt=1.0, ": ""}, "Bound the knob 'sparsity' on both sides"),
        ({'description="Share of the weights set to zero."': ""}, "Describe the knob 'sparsity'"),
        ({'paper: ClassVar[str] = "https://arxiv.org/abs/2306.11695"': ""}, "Give it `paper"),
        ({"return weight * keep_mask(score": "return weight.mul_(2) * keep_mask(score"}, "writes into the parent's"),
    ],
)
def test_the_contract_is_checked(lab: Lab, base: wb.Variant, tiny_text: wb.Text, words: Any, says: str) -> None:
    made = lab("01_wanda", words=words)
    assert says in named(wb.check(made["MyWanda"], base, tiny_text, **WANDA, ablation=made["ByChance"]))


def test_lots_without_a_seed_are_not_repeatable(lab: Lab, tiny: wb.Variant, tiny_text: wb.Text) -> None:
    made = lab("01_wanda", words={", generator=torch.Generator().manual_seed(0)": ""})
    assert "draw from a generator with a seed" in named(wb.check(made["ByChance"], tiny, tiny_text))
    assert "draw from a generator with a seed" in named(
        wb.check(made["MyWanda"], tiny, tiny_text, **WANDA, ablation=made["ByChance"])
    )


def test_what_spoils_the_parent_the_same_way_each_time_is_seen(lab: Lab, base: wb.Variant, tiny_text: wb.Text) -> None:
    """Zeros in place of the same weights again change nothing more; all of the model is then left alone."""
    whole, spoilt = "weight * keep_mask(score, self.sparsity, group=0, rows=True)", "weight.mul_(keep_mask(score, "
    made = lab("01_wanda", words={f"return {whole}": f"return {spoilt}self.sparsity, group=0, rows=True))"})
    found = wb.check(made["MyWanda"], base, tiny_text, **WANDA, ablation=made["ByChance"])
    assert "writes into the parent's" in " ".join(found.mistakes)
    assert found.numbers == ()


def test_without_data_a_step_is_tried_on_a_tenth(tiny: wb.Variant) -> None:
    blocks = len(contract.shortened(tiny, None).model.model.layers)
    assert 0 < blocks < len(tiny.model.model.layers)


def test_hostile_names_are_text(lab: Lab, tiny: wb.Variant) -> None:
    made = type("<img src=x onerror=alert(1)>", (lab("04_predict_the_speed")["MyPrediction"],), {})
    assert "<img" not in wb.check(made, tiny)._repr_html_()


@pytest.mark.parametrize("step", [prune.Wanda, quantize.RTN, quantize.GPTQ, quantize.NF4])
def test_the_workbench_keeps_its_own_contract(step: Any, tiny: wb.Variant, tiny_text: wb.Text) -> None:
    found = wb.check(step, tiny, tiny_text)
    assert found.passed, found


def test_only_steps_and_calculators(tiny: wb.Variant) -> None:
    with pytest.raises(wb.WorkbenchError, match="takes a step or a calculator, or the class of one, not int"):
        wb.check(3, tiny)  # type: ignore[arg-type]
