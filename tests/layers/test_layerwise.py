"""What every step that changes layer after layer keeps."""

from dataclasses import replace

import pytest
import torch

import workbench as wb
from workbench.core.errors import InvalidInput, OutOfMemory
from workbench.layers import calibration
from workbench.layers.activations import LayerInput
from workbench.layers.step import LayerStep
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import dense_weight
from workbench.steps import families, prune, quantize

STEPS = [step for steps in families().values() for step in steps if issubclass(step, LayerStep)]
every_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
LAYER_0 = "model.layers.0.mlp.down_proj"


@every_step
def test_excluded_layers_stay_the_parents_own(step: type[LayerStep], base: wb.Variant, tiny_text: wb.Text) -> None:
    child = base.apply(step(exclude="0.mlp.down_proj, q_proj, 1.*"), tiny_text)
    _, blocks = decoder_blocks(base.model)
    for path, layer in blocks.named_modules():
        ours = child.model.model.layers.get_submodule(path) if path else None
        if isinstance(layer, torch.nn.Linear):
            kept = path in ("0.mlp.down_proj", "0.self_attn.q_proj") or path.startswith("1.")
            assert (getattr(ours, "weight", None) is layer.weight) == kept, path


@every_step
def test_an_exclusion_that_names_nothing_is_refused(
    step: type[LayerStep], base: wb.Variant, tiny_text: wb.Text
) -> None:
    with pytest.raises(InvalidInput, match=r"No layer is called 'gone' here: exclude one such as 0\.self_attn\.q_proj"):
        base.apply(step(exclude="gone"), tiny_text)


@every_step
def test_excluding_everything_changes_no_block(step: type[LayerStep], base: wb.Variant, tiny_text: wb.Text) -> None:
    options = {"head": False} if "head" in step.model_fields else {}
    if step is quantize.Budget:
        return  # there is nothing to spend bits on
    child = base.apply(step(exclude="*", **options), tiny_text)
    assert child.total_bytes == base.total_bytes
    assert child.owned_bytes == 0


def test_out_of_memory_in_a_block_leaves_everything_as_it_was(
    base: wb.Variant, tiny_text: wb.Text, monkeypatch
) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    calls = []

    def fail(self: LayerStep, weight: torch.Tensor, inputs: LayerInput | None) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 9:
            raise torch.OutOfMemoryError("out of memory")
        return weight * 0

    monkeypatch.setattr(prune.Wanda, "change", fail)
    with pytest.raises(OutOfMemory, match="nothing was changed"):
        base.apply(prune.Wanda(), tiny_text)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
    assert base.owned_bytes == base.total_bytes


def test_a_bias_and_a_norm_are_shared(load_tiny, tiny_text: wb.Text) -> None:
    base = load_tiny("opt")
    child = base.apply(prune.Wanda(), tiny_text)
    ours, theirs = dict(child.model.named_parameters()), dict(base.model.named_parameters())
    changed = {name for name in theirs if ours[name] is not theirs[name]}
    assert changed
    assert all(name.endswith("weight") and theirs[name].ndim == 2 for name in changed)


def test_turned_weights_are_changed_along_the_right_side(load_tiny, tiny_text: wb.Text) -> None:
    base = load_tiny("gpt2")
    child = base.apply(prune.Wanda(sparsity=0.5), tiny_text)
    weight = dense_weight(child.model.transformer.h[0].mlp.c_fc)  # (256, 64), stored (64, 256)
    assert ((weight == 0).sum(dim=1) == 32).all()
    assert child.model.transformer.h[0].mlp.c_fc.weight.shape == (64, 256)


def test_a_layer_that_calibration_never_reaches_is_named(base: wb.Variant, tiny_text: wb.Text, monkeypatch) -> None:
    walked = calibration.visit

    def without_one(*args, **named):
        for block in walked(*args, **named):
            yield replace(block, layers={path: fed for path, fed in block.layers.items() if "up_proj" not in path})

    monkeypatch.setattr(calibration, "visit", without_one)
    with pytest.raises(InvalidInput, match="never reaches 2 layers"):
        base.apply(prune.Wanda(), tiny_text)
