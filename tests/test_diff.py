"""What changed between two variants."""

import json
from collections.abc import Callable

import numpy as np
import pytest

import workbench as wb
from workbench.errors import InvalidInput
from workbench.packed import dense_weight
from workbench.steps import prompt, quantize


def test_relative_change_of_each_matrix(base: wb.Variant) -> None:
    changed = base.apply(quantize.NF4())
    found = wb.diff(base, changed)
    assert found.relative.shape == (len(found.layers), len(found.modules))
    assert found.layers == ("0", "1", "–")
    before = dense_weight(base.model.get_submodule("model.layers.1.mlp.up_proj"))
    after = dense_weight(changed.model.get_submodule("model.layers.1.mlp.up_proj"))
    wanted = float((after - before).norm() / before.norm())
    assert found.table().loc["1", "mlp.up_proj"] == pytest.approx(wanted)
    assert 0.05 < wanted < 0.2  # 4 bits of a normal distribution
    assert found.table().loc["–", "lm_head"] == 0  # the head stays dense
    heat = json.loads(found.figure().to_json())["data"][0]
    assert heat["type"] == "heatmap"


def test_nothing_changed(base: wb.Variant) -> None:
    found = wb.diff(base, base.apply(prompt.System()))
    assert np.nanmax(found.relative) == 0


def test_other_models_are_refused(base: wb.Variant, load_tiny: Callable[[str], wb.Variant]) -> None:
    with pytest.raises(InvalidInput, match="different layers"):
        wb.diff(base, load_tiny("gpt2"))
