"""Throughput and latency over how many requests come at once."""

import json

import numpy as np
import pytest

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.display import batching_figure
from workbench.measurement import batching as module


def test_every_size_is_measured(base: wb.Variant, tiny_task: wb.Task) -> None:
    found = wb.batching(base, tiny_task, sizes=(4, 1, 2), rounds=3, new_tokens=4)
    assert found.sizes == (1, 2, 4)
    assert found.knee[0] in found.sizes
    assert found.gain[0].value == pytest.approx(1)
    assert all(each.n == 3 for each in (*found.throughput, *found.latency, *found.ttft))
    for rate, gap, first in zip(found.throughput, found.latency, found.ttft, strict=True):
        assert rate.value > 0
        assert gap.value > 0
        assert first.value > 0
    assert list(found.table().index) == [1, 2, 4]
    assert "knee" in str(found)
    with pytest.raises(InvalidInput, match="sizes"):
        wb.batching(base, tiny_task, sizes=(0, 2))
    with pytest.raises(InvalidInput, match="shorten the prompt"):
        wb.batching(base, tiny_task, sizes=(1,), new_tokens=5000)


def test_the_knee_has_the_most_power() -> None:
    """A request alone takes 60 ms a token and 2 ms more for each beside it: power is greatest at 32, 60/2 = 30."""
    sizes = (1, 2, 4, 8, 16, 32, 64, 128)
    gaps = np.array([[0.06 + 0.002 * n] * 7 for n in sizes])
    rates = np.array([[n] * 7 for n in sizes]) / gaps
    assert module._knee(sizes, rates, gaps) == (32, 32, 32)


def test_it_is_drawn_with_its_intervals_and_escaped(base: wb.Variant, tiny_task: wb.Task) -> None:
    found = wb.batching(base.under("<b>x</b>"), tiny_task, sizes=(1, 2), rounds=2, new_tokens=3)
    figure = json.loads(batching_figure(found).to_json())
    throughput, latency = figure["data"]
    assert throughput["x"] == [1, 2]
    assert latency["y"] == [1000 * each.value for each in found.latency]
    assert throughput["error_y"]["array"] == [each.high - each.value for each in found.throughput]
    assert figure["layout"]["shapes"][0]["x0"] == found.knee[0]
    assert "<b>x</b>" not in figure["layout"]["title"]["text"]
    assert "<b>x</b>" not in found.html()
    assert "(knee)" in found.html()
