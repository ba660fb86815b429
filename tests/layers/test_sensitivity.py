"""Sensitivity against applying the step to one layer and measuring."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.core.errors import Cancelled, InvalidInput
from workbench.core.progress import Progress
from workbench.layers.sensitivity import WINDOWS, read_windows, sensitivity
from workbench.measurement.likelihood import likelihoods
from workbench.runtime.reader import Span
from workbench.steps import prompt, prune, quantize


def measured(base: wb.Variant, text: wb.Text, step: wb.Step, layers: tuple[str, ...], row: int) -> float:
    """KL of the variant whose only changed layer is that of the row."""
    others = ",".join(layer for index, layer in enumerate(layers) if index != row)
    child = base.apply(step.model_copy(update={"exclude": others}), text)
    windows = read_windows(base, text, WINDOWS).tolist()
    spans = [Span(tuple(window[:1]), tuple(window[1:])) for window in windows]
    found = likelihoods([base, child], [spans, spans])[1]
    return sum(found.kl) / sum(found.tokens)


@pytest.mark.parametrize(
    ("step", "strengths"),
    [(quantize.RTN(head=False), (4, 6)), (prune.Wanda(), (0.1, 0.2)), (prune.Magnitude(), (0.1,))],
    ids=["RTN", "Wanda", "Magnitude"],
)
def test_estimates_are_what_is_measured(step: wb.Step, strengths: tuple[float, ...], base, tiny_text) -> None:
    found = sensitivity(base, tiny_text, step, strengths, draws=64)
    assert found.kl.shape == (14, len(strengths))
    assert (found.low <= found.kl).all()
    assert (found.kl <= found.high).all()
    pairs = []
    for row in range(0, 14, 3):
        for column, value in enumerate(strengths):
            one = type(step)(**step.model_dump() | {step.strength: value})
            pairs.append((found.kl[row, column], measured(base, tiny_text, one, found.layers, row)))
    estimated, exact = np.array(pairs).T
    assert np.median(np.abs(np.log(estimated / exact))) < 0.3
    assert np.corrcoef(np.log(estimated), np.log(exact))[0, 1] > 0.9


def test_rows_and_columns_are_named(base: wb.Variant, tiny_text: wb.Text) -> None:
    found = sensitivity(base, tiny_text, prune.Magnitude(exclude="0.*"), draws=2)
    assert found.step == "prune.Magnitude"
    assert found.knob == "sparsity"
    assert found.strengths == (0.3, 0.5, 0.7)
    assert all(layer.startswith("1.") for layer in found.layers)
    table = found.table()
    assert list(table.index) == list(found.layers)
    assert list(table.columns) == list(found.strengths)
    assert (table[0.7] > table[0.3]).all()


def test_the_parent_is_left_as_it_was(base: wb.Variant, tiny_text: wb.Text) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    sensitivity(base, tiny_text, quantize.RTN, draws=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
    assert not any(tensor.requires_grad for tensor in base.model.parameters())


def test_what_cannot_be_asked_is_refused(base: wb.Variant, tiny_text: wb.Text) -> None:
    with pytest.raises(InvalidInput, match="does not change layers one by one"):
        sensitivity(base, tiny_text, prompt.System)
    with pytest.raises(InvalidInput, match="sparsity"):
        sensitivity(base, tiny_text, prune.Wanda, strengths=(0.5, 1.5))
    with pytest.raises(InvalidInput, match="already quantized"):
        sensitivity(base.apply(quantize.Int8()), tiny_text, quantize.RTN)
    with pytest.raises(InvalidInput, match="at least one window and one draw"):
        sensitivity(base, tiny_text, quantize.RTN, draws=0)


def test_it_can_be_cancelled(base: wb.Variant, tiny_text: wb.Text) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        sensitivity(base, tiny_text, quantize.RTN, draws=1, progress=progress)
