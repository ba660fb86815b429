"""Fine-tuning: what is trained, what stays shared, and what an adapter stands for."""

from pathlib import Path

import elsewhere
import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES
from quick import IDS, logits, trained

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.models.packed import dense_weight, linear_layers
from workbench.steps import finetune, prune, quantize
from workbench.training.sequences import read_samples
from workbench.training.step import curve
from workbench.training.teacher import drift

KINDS = [finetune.LoRA, finetune.RSLoRA, finetune.DoRA, finetune.QLoRA, finetune.Full]
# Every kind on a usual and on an unusual layer (GPT-2's is turned); the plainest on every architecture.
PAIRS = [(kind, each) for kind in KINDS for each in ARCHITECTURES if kind is finetune.LoRA or each in ("llama", "gpt2")]
every_pair = pytest.mark.parametrize(("kind", "architecture"), PAIRS)


@every_pair
def test_it_learns_beside_the_base_and_fuses_to_a_plain_model(
    kind, architecture, load_tiny, tiny_task, tmp_path
) -> None:
    base = load_tiny(architecture)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    tuned = trained(kind, base, tiny_task)
    losses = [each.loss for each in curve(tuned).evaluations]
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
    assert not any(each.requires_grad for each in tuned.model.parameters())
    again = wb.load(tuned.save(tmp_path / "tuned"), device="cpu")
    assert torch.equal(logits(again), logits(tuned))
    if kind is not finetune.Full:
        fused = tuned.apply(finetune.Fuse())
        difference = (logits(fused) - logits(tuned)).norm() / logits(tuned).norm()
        assert difference < (0.02 if kind is finetune.QLoRA else 1e-4)  # the kernel of NF4 multiplies in 16 bits
        assert not hasattr(fused.model, "peft_config")


def test_several_adapters_cost_several_adapters(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    several = [trained(finetune.LoRA, base, tiny_task, seed=seed, epochs=0.5) for seed in range(3)]
    size = finetune.LoRA().forecast(base).owned_bytes
    assert [each.owned_bytes for each in several] == [size] * 3


def test_an_adapter_is_turned_down_to_the_base(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    tuned = trained(finetune.LoRA, base, tiny_task)
    off, half, full = (tuned.apply(finetune.Strength(strength=each)) for each in (0.0, 0.5, 1.0))
    assert torch.equal(logits(off), logits(base))
    assert torch.equal(logits(full), logits(tuned))
    assert half.owned_bytes == 0
    path = "model.layers.0.mlp.up_proj"
    middle = (dense_weight(base.model.get_submodule(path)) + dense_weight(tuned.model.get_submodule(path))) / 2
    assert torch.allclose(dense_weight(half.model.get_submodule(path)), middle, atol=1e-6)


@pytest.mark.parametrize("step", [quantize.NF4(), quantize.Int8(), quantize.RTN()], ids=lambda step: step.label)
def test_adapters_sit_beside_packed_layers(step, load_tiny, tiny_task: wb.Task) -> None:
    packed = load_tiny("llama").apply(step)
    tuned = trained(finetune.QLoRA, packed, tiny_task)
    losses = [each.loss for each in curve(tuned).evaluations]
    assert losses[-1] < 0.9 * losses[0]
    assert tuned.owned_bytes == finetune.LoRA().forecast(packed).owned_bytes


def test_bad_input_is_refused_in_words(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    empty = tiny_task.model_copy(update={"train": ()})
    with pytest.raises(InvalidInput, match="no train examples"):
        base.apply(finetune.LoRA(), empty)
    with pytest.raises(InvalidInput, match="No layer is called 'nothing'"):
        base.apply(finetune.LoRA(layers="nothing"), tiny_task)
    long = tiny_task.train[0].model_copy(update={"prompt": "boat " * 600})
    with pytest.raises(InvalidInput, match="shorten the prompts"):
        base.apply(finetune.LoRA(), tiny_task.model_copy(update={"train": (long,)}))
    with pytest.raises(InvalidInput, match="no adapter"):
        base.apply(finetune.Fuse())
    with pytest.raises(InvalidInput, match="is already quantized"):
        base.apply(quantize.NF4()).apply(finetune.DoRA(), tiny_task)


LOSING = [quantize.NF4(), quantize.RTN(), prune.Magnitude(), prune.Wanda(), prune.Width(), prune.DropBlocks(share=0.5)]


@pytest.mark.parametrize("step", [finetune.QLoRA(), finetune.Full(), *LOSING], ids=lambda step: step.label)
def test_a_step_that_would_lose_an_adapter_asks_to_fuse_it(step, load_tiny, tiny_task: wb.Task) -> None:
    tuned = trained(finetune.LoRA, load_tiny("llama"), tiny_task, epochs=0.5)
    with pytest.raises(InvalidInput, match=r"has an adapter: apply finetune.Fuse\(\) first"):
        tuned.apply(step, tiny_task)
    assert tuned.apply(finetune.Fuse()).apply(step, tiny_task).generate("Rain", max_new_tokens=2).token_ids


def test_two_adapters_are_summed(load_tiny, tiny_task: wb.Task, tmp_path: Path) -> None:
    base = load_tiny("gpt2")
    one = trained(finetune.LoRA, base, tiny_task, seed=1).renamed("one")
    two = trained(finetune.LoRA, base, tiny_task, seed=2, rank=3, layers="mlp.*").renamed("two")
    both = one.apply(finetune.Combine(adapter="two", weight=0.5))
    for path, layer in linear_layers(base.model):
        weight = dense_weight(layer)
        changes = [dense_weight(each.model.get_submodule(path)) - weight for each in (one, two)]
        expected = weight + changes[0] + 0.5 * changes[1]
        assert torch.allclose(dense_weight(both.model.get_submodule(path)), expected, atol=1e-5), path
    assert both.owned_bytes < 2 * one.owned_bytes
    again = wb.load(both.save(tmp_path / "both"), device="cpu")
    assert torch.equal(logits(again), logits(both))
    assert one.apply(finetune.Combine(weight=0.0)).model is one.model
    two.close()
    with pytest.raises(InvalidInput, match="no variant 'two' with an adapter"):
        one.apply(finetune.Combine(adapter="two"))
    other = trained(finetune.LoRA, load_tiny("gpt2"), tiny_task).renamed("other")
    with pytest.raises(InvalidInput, match="of different models"):
        one.apply(finetune.Combine(adapter="other"))
    assert other.name == "other"


def test_an_adapter_turned_down_or_renamed_is_no_other_one(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    tuned = trained(finetune.LoRA, base, tiny_task)
    half = tuned.apply(finetune.Strength(strength=0.5))
    for variant in (tuned, half, tuned.renamed("mine"), half.renamed("other half")):
        with pytest.raises(InvalidInput, match="no other variant with an adapter"):
            variant.apply(finetune.Combine())
    other = trained(finetune.LoRA, base, tiny_task, seed=5)
    for variant in (tuned, half):
        sums = [variant.apply(finetune.Combine(weight=weight)) for weight in (1.0, 0.5)]
        assert [each.parent for each in sums] == [variant, variant]
        del sums
    assert other.parent is base


def test_adapters_are_switched_by_the_request(load_tiny, tiny_task: wb.Task) -> None:
    """Variants of one base answer in turn, each as if it were alone, and nothing is loaded or copied between them."""
    base = load_tiny("llama")
    several = [base, *(trained(finetune.LoRA, base, tiny_task, seed=seed) for seed in (1, 2))]
    alone = [each.generate("How many seats?", max_new_tokens=6).token_ids for each in several]
    streams = [each.stream("How many seats?", max_new_tokens=6) for each in several]
    together = list(zip(*([piece.token_id for piece in stream] for stream in streams), strict=False))
    assert [tuple(tokens) for tokens in zip(*together, strict=True)] == [each[: len(together)] for each in alone]
    assert len(set(alone)) == 3


@pytest.mark.parametrize("step", [quantize.NF4(), quantize.Int8()], ids=lambda step: step.label)
def test_fusing_into_packed_layers_says_what_it_costs(step, load_tiny, tiny_task: wb.Task) -> None:
    packed = load_tiny("llama").apply(step)
    tuned = trained(finetune.QLoRA, packed, tiny_task)
    dense, again = (tuned.apply(finetune.Fuse(repack=each), tiny_task) for each in (False, True))
    assert again.total_bytes == packed.total_bytes < dense.total_bytes
    drifts = []
    for fused, now in ((dense, "dense now"), (again, "rounded to their bits again")):
        assert now in fused.notes[-1]
        assert now in repr(fused)
        drifts.append(float(fused.notes[-1].split(" are ")[-1].split()[0]))
        assert drifts[-1] == pytest.approx(drift(tuned, fused, tiny_task), rel=0.01)
    assert drifts[0] < drifts[1]
    assert "nats a token" in tuned.apply(finetune.Fuse()).notes[-1], "without a task, on an answer"
    grouped = trained(finetune.QLoRA, load_tiny("llama").apply(quantize.RTN()), tiny_task)
    with pytest.raises(InvalidInput, match="apply that step again"):
        grouped.apply(finetune.Fuse(repack=True))


def test_drift_is_the_divergence_of_whole_forwards(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    tuned = trained(finetune.LoRA, base, tiny_task)
    total = count = 0.0
    for sample in read_samples(base, tiny_task, "calibration").samples:
        with torch.no_grad():
            rows = [
                each.model(torch.tensor([sample.ids])).logits[0, sample.start - 1 : -1].log_softmax(-1)
                for each in (tuned, base)
            ]
        total += float(F.kl_div(*rows, log_target=True, reduction="sum"))
        count += len(rows[0])
    assert drift(base, tuned, tiny_task) == pytest.approx(total / count, rel=1e-4)


def test_a_turned_adapter_leaves_the_other_as_it_was(load_tiny, tiny_task: wb.Task) -> None:
    tuned = trained(finetune.LoRA, load_tiny("llama"), tiny_task)
    before = logits(tuned)
    half = tuned.apply(finetune.Strength(strength=0.5))
    fused = half.apply(finetune.Fuse())
    assert (logits(fused) - logits(half)).norm() < 1e-4 * logits(half).norm()
    assert torch.equal(logits(tuned), before)
    assert not torch.equal(logits(half), before)
    states = [each.model(IDS, output_hidden_states=True).hidden_states for each in (tuned, half)]
    assert len(states[0]) == len(states[1]) == 3


def turned(kind: type[finetune.LoRA], base: wb.Variant, task: wb.Task) -> wb.Variant:
    """Trained and, where it can be, turned up, so that its strength counts, too."""
    tuned = trained(kind, base, task)
    return tuned if kind is finetune.DoRA else tuned.apply(finetune.Strength(strength=1.5))


def test_peft_reads_exported_adapters(load_tiny, tiny_task: wb.Task, tmp_path: Path) -> None:
    base = load_tiny("llama")
    made = {kind.__name__: turned(kind, base, tiny_task) for kind in KINDS if kind is not finetune.Full}
    found = elsewhere.read({name: each.save(tmp_path / name) for name, each in made.items()}, IDS, tmp_path, {})
    for name, each in made.items():
        assert elsewhere.divergence(logits(each), found[f"{name}:logits"]) < (1e-3 if name == "QLoRA" else 1e-8), name
        change = (logits(each) - logits(base)).norm()
        assert change > 0.05 * logits(base).norm(), "it would be seen if it were left out"


def test_an_exported_adapter_is_verified(load_tiny, tiny_task: wb.Task, tmp_path: Path) -> None:
    found = wb.verify_export(turned(finetune.RSLoRA, load_tiny("llama"), tiny_task).save(tmp_path / "tuned"))
    assert found.loads, found
    assert found.format.endswith("with an adapter")
    assert "peft on plain transformers loads it" in repr(found)
    assert found.kl < 1e-8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", [finetune.LoRA, finetune.Full])
def test_a_model_in_16_bits_learns_small_steps(kind, dtype: str, folders, tiny_task: wb.Task) -> None:
    base = wb.load(folders["llama"], device="cpu", dtype=dtype)
    tuned = trained(kind, base, tiny_task, learning_rate=2e-4 if kind is finetune.Full else 1e-2)
    assert curve(tuned).best.loss < 0.95 * curve(tuned).evaluations[0].loss
    assert tuned.dtype == base.dtype
    assert {each.dtype for name, each in tuned.model.named_parameters() if "lora_" not in name} == {base.dtype}
    assert tuned.generate("Rain", max_new_tokens=2).token_ids
