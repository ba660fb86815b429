"""What changed between two variants."""

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import workbench as wb
from workbench.analysis.matching import block_pairs
from workbench.core.errors import Cancelled, Closed, InvalidInput
from workbench.models import sharing
from workbench.models.packed import dense_weight
from workbench.steps import prompt, prune, quantize

UP = "model.layers.1.mlp.up_proj"


def with_weights(variant: wb.Variant, name: str = "changed", **weights: Tensor) -> wb.Variant:
    """The variant with other weights, by path, its dots written as two underscores."""
    model = sharing.share(variant.model)
    for path, weight in weights.items():
        layer = model.get_submodule(path.replace("__", "."))
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return replace(variant, model=model, name=name)


def without_blocks(variant: wb.Variant, *blocks: int) -> wb.Variant:
    model = sharing.share(variant.model)
    for index in sorted(blocks, reverse=True):
        del model.model.layers[index]
    return replace(variant, model=model, name="shorter")


@pytest.fixture(scope="module")
def deep(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> wb.Variant:
    """A Llama of five blocks."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("deep")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return wb.load(folder, device="cpu", dtype="float32")


def test_relative_change_of_each_matrix(base: wb.Variant) -> None:
    changed = base.apply(quantize.NF4())
    found = wb.diff(base, changed)
    assert found.layers == ("0", "1")
    assert found.relative.shape == (2, len(found.modules)) == (2, 7)
    before = dense_weight(base.model.get_submodule(UP))
    after = dense_weight(changed.model.get_submodule(UP))
    wanted = float((after - before).norm() / before.norm())
    assert found.pivot().loc["1", "mlp.up_proj"] == pytest.approx(wanted)
    assert 0.05 < wanted < 0.2  # 4 bits of a normal distribution
    assert (found.before, found.after) == ("llama", "NF4")


def test_a_matrix_by_hand(base: wb.Variant) -> None:
    weight = torch.full((128, 64), 2.0)
    weight[0] = 0  # 1 row of 128
    doubled = weight * 2
    doubled[:64] = 0  # half of it
    one = with_weights(base, model__layers__1__mlp__up_proj=weight)
    two = with_weights(base, model__layers__1__mlp__up_proj=doubled)
    row = wb.diff(one, two).table().set_index("path").loc[UP]
    # 63 rows lose 2 and 64 rows gain 2, of 127 rows of 2.
    assert row["change"] == pytest.approx(1.0)
    assert (row["block"], row["module"]) == (1, "mlp.up_proj")
    assert (row["zeros_before"], row["zeros_after"]) == (1 / 128, 0.5)
    assert (row["bits_before"], row["bits_after"]) == (32, 32)
    assert row["shape_before"] == row["shape_after"] == (128, 64)
    assert np.isnan(wb.diff(with_weights(base, model__layers__1__mlp__up_proj=weight * 0), two).relative[1, 5])


def test_one_row_a_matrix(base: wb.Variant, load_tiny: Callable[[str], wb.Variant]) -> None:
    found = wb.diff(base, base.apply(quantize.Int8()))
    table = found.table().set_index("path")
    assert list(table.index) == list(found.paths)
    assert len(table) == 2 * 7 + 2
    assert table["block"].isna().sum() == 2  # the embedding and the head
    assert table.loc[UP, "bits_after"] == 8 + 32 / 64  # a scale of 32 bits for a row of 64
    assert table.loc[UP, "bits_before"] == 32
    assert found.pivot("bits").loc["1", "mlp.up_proj"] == 8.5
    tied = load_tiny("qwen3")
    assert wb.diff(tied, tied).paths[-1] == "lm_head"  # the embedding shares it
    packed = wb.diff(tied, tied.apply(quantize.RTN())).table().set_index("path")
    assert "model.embed_tokens" not in packed.index
    assert packed.loc["lm_head", "bits_after"] == 8.5
    positions = wb.diff(load_tiny("gpt2"), load_tiny("gpt2"))
    assert {"transformer.wpe", "lm_head"} <= set(positions.paths)
    assert np.nanmax(positions.relative) == 0


def test_a_bias_is_not_counted(load_tiny: Callable[[str], wb.Variant]) -> None:
    base = load_tiny("gpt_neox")
    table = wb.diff(base, base.apply(quantize.Int8())).table().set_index("path")
    assert table.loc["gpt_neox.layers.0.mlp.dense_h_to_4h", "bits_after"] == 8.5


def test_nothing_changed(base: wb.Variant) -> None:
    found = wb.diff(base, base.apply(prompt.System()))
    assert np.nanmax(found.relative) == 0
    assert found.figure().layout.coloraxis.cmin == 0


def test_zeros_of_a_pruned_model(base: wb.Variant) -> None:
    found = wb.diff(base, base.apply(prune.Magnitude(sparsity=0.5)))
    assert found.pivot("zeros").to_numpy() == pytest.approx(0.5)
    assert found.table()["zeros_before"].max() < 0.01


def test_other_models_are_refused(base: wb.Variant, load_tiny: Callable[[str], wb.Variant]) -> None:
    for other in ("gpt2", "qwen3"):
        with pytest.raises(InvalidInput, match=r"^'llama' and '.*' have no matrix in common: .*\.$"):
            wb.diff(base, load_tiny(other))


def test_blocks_left_out_are_found(deep: wb.Variant) -> None:
    for shorter in (
        without_blocks(deep, 1, 3),
        without_blocks(deep.apply(prune.Magnitude(sparsity=0.9)), 1, 3),
        without_blocks(deep.apply(quantize.RTN(bits=2)), 1, 3),
    ):
        for found in (wb.diff(deep, shorter), wb.diff(shorter, deep)):
            assert found.layers == ("0", "1", "2", "3", "4")
            missing = np.isnan(found.relative)
            assert missing.tolist() == [[False] * 7, [True] * 7, [False] * 7, [True] * 7, [False] * 7]
        table = wb.diff(deep, shorter).table().set_index("path")
        assert table.loc["model.layers.1.mlp.up_proj", "shape_before"] == (64, 32)
        assert table.loc["model.layers.1.mlp.up_proj", "shape_after"] is None
        assert np.isnan(table.loc["model.layers.1.mlp.up_proj", "zeros_after"])
    assert np.nanmax(wb.diff(deep, without_blocks(deep, 0)).relative) == 0


def test_blocks_that_resemble_nothing_are_matched_by_position(deep: wb.Variant) -> None:
    blocks = deep.model.model.layers
    shuffled = nn.ModuleList([blocks[3], blocks[1]])
    assert block_pairs(blocks, shuffled) == [(0, 0), (1, 1), (2, None), (3, None), (4, None)]
    assert block_pairs(shuffled, nn.ModuleList([blocks[1]])) == [(0, None), (1, 0)]
    assert block_pairs(nn.ModuleList([blocks[1]]), shuffled) == [(None, 0), (0, 1)]


def test_narrower_matrices(base: wb.Variant, tiny_text: wb.Text) -> None:
    narrow = base.apply(prune.Width(mlp=0.5), tiny_text)
    found = wb.diff(base, narrow)
    row = found.table().set_index("path").loc[UP]
    assert (row["shape_before"], row["shape_after"]) == ((128, 64), (64, 64))
    assert np.isnan(row["change"])
    assert row["zeros_after"] == 0
    assert found.pivot().loc["0", "self_attn.q_proj"] == 0
    figure = found.figure()
    assert [trace.name for trace in figure.data if trace.showlegend] == ["another shape"]
    titles = [note.text for note in found.closeup(UP).layout.annotations]
    assert titles == ["llama (128 x 64): no zeros here", "Width (64 x 64): no zeros here"]
    assert len(found.histogram(UP).data) == 2


def test_smaller_vocabulary(base: wb.Variant) -> None:
    embedding, head = base.model.model.embed_tokens.weight, base.model.lm_head.weight
    found = wb.diff(base, with_weights(base, model__embed_tokens=embedding[:256], lm_head=head[:256]))
    row = found.table().set_index("path").loc["lm_head"]
    assert (row["shape_before"], row["shape_after"]) == ((400, 64), (256, 64))
    assert np.isnan(row["change"])
    assert found.figure().data[2].x == ("embed_tokens: –", "lm_head: –")


def test_the_heat_map(deep: wb.Variant) -> None:
    figures = [wb.diff(deep, other).figure() for other in (deep, deep.apply(quantize.Int8()), without_blocks(deep, 2))]
    assert {len(figure.data) for figure in figures} == {6}  # so that a figure on screen can be brought up to date
    same, _, dropped = (json.loads(figure.to_json()) for figure in figures)
    main, grey, strip = dropped["data"][:3]
    assert main["type"] == "heatmap"
    assert main["x"][:2] == ["q_proj", "k_proj"]
    assert main["y"] == ["0", "1", "2", "3", "4"]
    assert main["customdata"][2][6] == "model.layers.2.mlp.down_proj"
    assert "shorter: not there" in main["text"][2][6]
    assert grey["z"][2] == [1] * 7
    assert grey["z"][1] == [None] * 7
    assert strip["x"] == ["embed_tokens: 0 %", "lm_head: 0 %"]
    assert [trace["name"] for trace in dropped["data"] if trace.get("showlegend")] == ["not in shorter"]
    assert not [trace for trace in same["data"] if trace.get("showlegend")]
    assert dropped["layout"]["coloraxis"]["cmax"] == 1
    with pytest.raises(InvalidInput, match="choose one of change, zeros, bits"):
        wb.diff(deep, deep).figure(value="colour")


def test_names_that_are_alike_are_given_in_full(load_tiny: Callable[[str], wb.Variant]) -> None:
    base = load_tiny("gpt2")
    figure = wb.diff(base, base).figure()
    assert figure.data[0].x == ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def test_names_are_shown_as_plain_text(base: wb.Variant) -> None:
    hostile = replace(without_blocks(base, 0), name="<a href=x>$x$</a>")
    found = wb.diff(base, hostile)
    for figure in (found.figure(), found.histogram("1.mlp.up_proj"), found.closeup("1.mlp.up_proj")):
        said = figure.to_json().encode().decode("unicode_escape")
        assert "<a" not in said
        assert "$x" not in said
        assert "&lt;a" in said


def test_histogram_by_hand(base: wb.Variant) -> None:
    before, after = torch.full((128, 64), 1.0), torch.full((128, 64), -1.0)
    before[:32] = -0.25  # a quarter of it
    after[:64] = 0
    pair = [
        with_weights(base, name, model__layers__1__mlp__up_proj=each) for name, each in (("a", before), ("b", after))
    ]
    found = wb.diff(*pair)
    one, two = found.histogram(UP, bins=4).data
    assert np.allclose(one.x, [-0.75, -0.25, 0.25, 0.75])  # up to the largest weight
    assert list(one.y) == [0, 25, 0, 75]
    assert list(two.y) == [50, 0, 0, 0]
    assert (one.name, two.name) == ("a: no zeros", "b: 50.0 % zeros")
    assert found.histogram("1.mlp.up_proj").layout.title.text == f"Weights of {UP}, without zeros"
    far = before.clone()
    far[0, 0] = 1000
    last = with_weights(base, "c", model__layers__1__mlp__up_proj=far)
    assert wb.diff(last, last).histogram(UP).data[0].name == "c: no zeros, 0.012 % beyond"


def test_closeup_by_hand(base: wb.Variant) -> None:
    weight = torch.arange(128 * 64, dtype=torch.float32).view(128, 64)
    pruned = weight * (weight % 2 == 0)
    pair = [
        with_weights(base, name, model__layers__1__mlp__up_proj=each) for name, each in (("a", weight), ("b", pruned))
    ]
    found = wb.diff(*pair)
    one, two = json.loads(found.closeup(UP, rows=2, columns=3, at=(1, 2)).to_json())["data"]
    assert np.array(found.closeup(UP, rows=2, columns=3, at=(1, 2)).data[0].z).tolist() == [
        [66, 67, 68],
        [130, 131, 132],
    ]
    second = np.array(found.closeup(UP, rows=2, columns=3, at=(1, 2)).data[1].z)
    assert np.isnan(second).tolist() == [[False, True, False]] * 2
    assert one["type"] == two["type"] == "heatmap"
    figure = found.closeup(UP, rows=2, columns=3, at=(1, 2))
    assert list(figure.data[0].x) == [2, 3, 4]
    assert list(figure.data[0].y) == [1, 2]
    assert [note.text for note in figure.layout.annotations] == ["a: no zeros here", "b: 33.3 % zeros here"]
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    assert len(found.closeup(UP, rows=1000, at=(120, 60)).data[0].y) == 8
    assert found.closeup("lm_head", rows=1, columns=1)
    for wrong in ({"at": (128, 0)}, {"at": (-1, 0)}, {"rows": 0}):
        with pytest.raises(InvalidInput, match="128 rows and 64 columns"):
            found.closeup(UP, **wrong)


def test_a_matrix_of_a_block_left_out(deep: wb.Variant) -> None:
    found = wb.diff(deep, shorter := without_blocks(deep, 1))
    assert [trace.name for trace in found.histogram("1.mlp.up_proj").data] == [f"{deep.name}: no zeros"]
    assert len(found.closeup("2.mlp.up_proj").data) == 2
    assert shorter
    with pytest.raises(InvalidInput, match=r"no matrix '9\.mlp' here: take one of diff\.paths"):
        found.closeup("9.mlp")


def test_it_holds_no_weights(base: wb.Variant, load_tiny: Callable[[str], wb.Variant]) -> None:
    changed = base.apply(quantize.Int8())
    found = wb.diff(base, changed)
    model = weakref.ref(changed.model)
    changed.close()
    gc.collect()
    assert model() is None
    with pytest.raises(Closed, match="was closed"):
        found.histogram(UP)
    del changed
    gc.collect()
    with pytest.raises(Closed, match="'Int8' is no longer in memory: keep it in a variable"):
        found.closeup(UP)
    assert found.figure()


def test_it_can_be_cancelled(base: wb.Variant) -> None:
    progress = wb.Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        wb.diff(base, base, progress)


@pytest.mark.model
def test_the_embedded_model(smollm: wb.Variant, tmp_path: Path) -> None:
    found = wb.diff(smollm, smollm.apply(quantize.RTN(bits=4)))
    assert found.relative.shape == (30, 7)
    assert 0.05 < np.median(found.relative) < 0.2
    assert found.table()["bits_after"].max() < 9
