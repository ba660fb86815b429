"""Calibration statistics against a plain forward pass with hooks."""

import gc
from collections.abc import Callable
from pathlib import Path
from weakref import ref

import pytest
import torch
from conftest import ARCHITECTURES

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers import activations, calibration
from workbench.models import packed
from workbench.models.blocks import decoder_blocks
from workbench.steps import prompt, prune, quantize, retrieve

every_model = pytest.mark.parametrize("architecture", ARCHITECTURES)


def plain_inputs(variant: wb.Variant, windows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows ``(tokens, in)`` that every linear layer of the blocks sees in one ordinary forward pass."""
    root, blocks = decoder_blocks(variant.model)
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, path=path: seen.setdefault(path, []).append(args[0].flatten(0, -2))
        )
        for path, layer in ((f"{root}.{path}", layer) for path, layer in packed.linear_layers(blocks))
    ]
    with torch.no_grad():
        for window in windows:
            variant.model(torch.tensor([window]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(rows).double() for path, rows in seen.items()}


@every_model
def test_statistics_are_those_of_a_plain_forward(
    load_tiny: Callable[[str], wb.Variant], architecture: str, tiny_text: wb.Text
) -> None:
    base = load_tiny(architecture)
    found = calibration.statistics(base, tiny_text, hessians=True)
    expected = plain_inputs(base, tiny_text.windows(base.tokenizer, "calibration"))
    assert found.layers.keys() == expected.keys()
    for path, rows in expected.items():
        seen = found.layers[path]
        assert seen.tokens == len(rows) == 4 * 32
        assert torch.allclose(seen.norm.double(), rows.square().mean(0).sqrt(), rtol=1e-4, atol=1e-6)
        assert torch.allclose(seen.mean.double(), rows.abs().mean(0), rtol=1e-4, atol=1e-6)
        assert seen.hessian is not None
        assert torch.allclose(seen.hessian.double(), rows.t() @ rows / len(rows), rtol=1e-3, atol=1e-5)


def test_layers_that_read_one_tensor_share_its_statistics(base: wb.Variant, tiny_text: wb.Text) -> None:
    layers = calibration.statistics(base, tiny_text).layers
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    assert layers[f"{attention}.q_proj"] is layers[f"{attention}.k_proj"] is layers[f"{attention}.v_proj"]
    assert layers[f"{mlp}.gate_proj"] is layers[f"{mlp}.up_proj"]
    assert layers[f"{attention}.q_proj"].source == "model.layers.0.input_layernorm"
    assert layers[f"{mlp}.up_proj"].source == "model.layers.0.post_attention_layernorm"
    assert layers[f"{mlp}.down_proj"].source is None


def test_block_influence_is_that_of_the_hidden_states(base: wb.Variant, tiny_text: wb.Text) -> None:
    found = calibration.statistics(base, tiny_text).influence
    windows = torch.tensor(tiny_text.windows(base.tokenizer, "calibration"))
    states: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, args, output: states.extend([args[0], output]))
        for block in base.model.model.layers
    ]
    with torch.no_grad():
        base.model(windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    cosines = [torch.cosine_similarity(states[2 * i], states[2 * i + 1], dim=-1).mean() for i in range(2)]
    assert found == pytest.approx([1 - float(each) for each in cosines], abs=1e-5)


def test_one_pass_serves_every_method_and_setting(base: wb.Variant, tiny_text: wb.Text, monkeypatch) -> None:
    passes = []
    monkeypatch.setattr(
        activations, "enter_blocks", lambda *a, real=activations.enter_blocks: passes.append(1) or real(*a)
    )
    base.apply(prune.SparseGPT(), tiny_text)
    assert len(passes) == 1
    for step in (
        prune.Wanda(sparsity=0.3),
        prune.Wanda(sparsity=0.6),
        quantize.GPTQ(),
        quantize.AWQ(),
        prune.SparseGPT(),
    ):
        base.apply(step, tiny_text)
    assert len(passes) == 1
    base.apply(prune.Wanda(sequential=True), tiny_text)
    assert len(passes) == 2
    base.apply(prune.Wanda(), tiny_text.model_copy(update={"calibration": 3}))
    assert len(passes) == 3


def test_sequential_without_a_change_sees_the_same(base: wb.Variant, tiny_text: wb.Text) -> None:
    once = list(calibration.visit(base, base.model, tiny_text, Progress()))
    again = list(calibration.visit(base, base.model, tiny_text, Progress(), sequential=True))
    for one, other in zip(once, again, strict=True):
        assert all(torch.equal(one.layers[path].norm, other.layers[path].norm) for path in one.layers)


def test_closing_the_variant_forgets_its_statistics(load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text) -> None:
    base = load_tiny("llama")
    calibration.statistics(base, tiny_text, hessians=True)
    model = ref(base.model)
    base.close()
    gc.collect()
    assert model() is None


def test_statistics_are_those_of_what_the_stages_make_of_the_examples(
    base: wb.Variant, tiny_task: wb.Task, tmp_path: Path
) -> None:
    """Two variants with one recipe on one model: examples of another task, or a document that has changed."""
    shown = tuple(each.model_copy(update={"answer": "Nobody counted them."}) for each in tiny_task.train)
    other = tiny_task.model_copy(update={"train": shown})
    few = [base.apply(prompt.FewShot(examples=2), each) for each in (tiny_task, other)]
    assert few[0].recipe == few[1].recipe
    found = [calibration.statistics(each, tiny_task) for each in few]
    assert found[0] is not found[1]
    assert seen(found[0]) != seen(found[1])

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Boat a 1 has seats of oak.")
    step = retrieve.Retrieve(documents=str(tmp_path / "docs"), method="bm25", top_k=1)
    before = base.apply(step)
    once = seen(calibration.statistics(before, tiny_task))
    (tmp_path / "docs" / "a.txt").write_text("Boat a 1 was sold last year, and nobody knows how many seats it had.")
    base.apply(step)  # the index is now another, for the older variant, too
    assert seen(calibration.statistics(before, tiny_task)) != once


def seen(found: calibration.Statistics) -> list[float]:
    return next(iter(found.layers.values())).norm.tolist()


def test_what_is_kept_stays_within_its_bound_and_the_oldest_goes(
    load_tiny: Callable[[str], wb.Variant], tiny_text: wb.Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    before = calibration.kept_bytes()
    models = [load_tiny("llama") for _ in range(3)]
    one = calibration.statistics(models[0], tiny_text, hessians=True).bytes
    assert calibration.kept_bytes() == before + one
    expected = {id(t): t.nbytes for b in calibration.statistics(models[0], tiny_text).blocks for i in b.layers.values()
                for t in (i.norm, i.mean, i.peak, i.hessian)}  # fmt: skip
    assert one == sum(expected.values())
    monkeypatch.setattr(calibration, "KEPT_BYTES", before + 2 * one)
    calibration.statistics(models[1], tiny_text, hessians=True)
    calibration.statistics(models[0], tiny_text)  # used again: now the second is the older
    calibration.statistics(models[2], tiny_text, hessians=True)
    assert calibration.kept_bytes() == before + 2 * one
    key = calibration._key(models[0], tiny_text)
    kept = [calibration._kept.get(each.model, key) is not None for each in models]
    assert kept == [True, False, True]
    monkeypatch.setattr(calibration, "KEPT_BYTES", one - 1)
    calibration.statistics(models[1], tiny_text, hessians=True)  # larger than all there is room for
    assert calibration._kept.get(models[1].model, key) is None


def test_a_task_is_joined_and_cut(base: wb.Variant, tiny_task: wb.Task) -> None:
    windows = calibration.calibration_windows(base, tiny_task)
    assert {len(window) for window in windows} == {len(windows[0])}
    assert len(windows[0]) <= min(calibration.WINDOW, base.context_length)
    one = tiny_task.model_copy(update={"calibration": tiny_task.calibration[:1]})
    assert len(calibration.calibration_windows(base, one)) == 1


def test_data_that_cannot_calibrate_are_refused(base: wb.Variant, tiny_task: wb.Task, tiny_text: wb.Text) -> None:
    step = prune.Wanda()
    with pytest.raises(InvalidInput, match="no calibration examples"):
        base.apply(step, tiny_task.model_copy(update={"calibration": ()}))
    with pytest.raises(InvalidInput, match="no windows for calibration"):
        base.apply(step, tiny_text.model_copy(update={"calibration": 0}))
    with pytest.raises(InvalidInput, match="fewer than"):
        base.apply(step, tiny_text.model_copy(update={"window": 400, "calibration": 50}))
    with pytest.raises(InvalidInput, match="holds 512"):
        base.apply(
            step, tiny_text.model_copy(update={"window": 600, "calibration": 1, "test": 1, "text": tiny_text.text * 9})
        )


@pytest.mark.parametrize("step", [prune.Wanda(), prune.Magnitude(), prune.SparseGPT(), quantize.GPTQ(), quantize.RTN()])
def test_a_quantized_variant_is_refused(base: wb.Variant, step: wb.Step, tiny_text: wb.Text) -> None:
    for first in (quantize.Int8(), quantize.RTN()):
        with pytest.raises(InvalidInput, match="already quantized"):
            base.apply(first).apply(step, tiny_text)
