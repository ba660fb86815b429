"""Figures of single layers and blocks, and the look that all figures share."""

import json

import numpy as np
import pytest

from workbench.display import plain, ranking_figure, sensitivity_figure, styled
from workbench.display.layers import log_ticks
from workbench.display.roofline import apart
from workbench.display.style import short_names
from workbench.layers.sensitivity import Sensitivity

LAYERS = ("0.attn.q", "0.mlp.up", "1.attn.q")


def made(
    kl: list[list[float]], knob: str = "bits", strengths: tuple[float, ...] = (2, 4), **other: object
) -> Sensitivity:
    values = np.array(kl)
    kinds = {"step": "quantize.RTN", "layers": LAYERS, "low": values / 2, "high": values * 2}
    return Sensitivity(knob=knob, strengths=strengths, kl=values, **kinds | other)


def test_sensitivity_by_strength_block_and_module() -> None:
    figure = sensitivity_figure(made([[1, 0.01], [0.1, 0.001], [10, 0.1]]))
    first, second = json.loads(figure.to_json())["data"]
    assert first["x"] == ["q", "up"]
    assert first["y"] == ["0", "1"]
    assert first["z"] == [[0, -1], [1, None]]  # powers of ten; block 1 has no up
    assert second["z"] == [[-2, -3], [-1, None]]
    assert first["customdata"] == [["0.attn.q", "0.mlp.up"], ["1.attn.q", "1.mlp.up"]]
    assert first["text"][0] == [
        "<b>0.attn.q</b>, 2 bits<br>1 [0.5, 2] nats/token",
        "<b>0.mlp.up</b>, 2 bits<br>0.1 [0.05, 0.2] nats/token",
    ]
    assert first["text"][1][1] == ""
    assert first["coloraxis"] == second["coloraxis"]
    assert [note.text for note in figure.layout.annotations] == ["2 bits", "4 bits"]
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-3, 1)
    assert axis.colorbar.ticktext == ("0.001", "0.01", "0.1", "1", "10")
    assert axis.colorbar.tickvals == (-3, -2, -1, 0, 1)


def test_sensitivity_of_another_knob() -> None:
    figure = sensitivity_figure(made([[1.0], [2], [3]], "sparsity", (0.5,)), transparent=True)
    assert figure.layout.annotations[0].text == "sparsity 0.5"
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_sensitivity_of_nothing_is_drawn_at_the_low_end() -> None:
    figure = sensitivity_figure(made([[1, 0], [0.1, 0], [0.01, 0]]))
    assert figure.data[1].z[0][0] == pytest.approx(-2)
    assert "0 [0, 0] nats" in figure.data[1].text[0][0]
    assert sensitivity_figure(made([[0, 0]] * 3)).data[0].z[0][0] == -1


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 9])
def test_any_number_of_strengths(count: int) -> None:
    figure = sensitivity_figure(made([[0.1] * count] * 3, strengths=tuple(range(1, count + 1))))
    assert len(figure.data) == count


def test_layer_names_are_shown_as_plain_text() -> None:
    hostile = ("0.<b>x</b>.$y$",)
    figure = sensitivity_figure(made([[1, 2]], layers=hostile))
    assert figure.data[0].customdata[0][0] == hostile[0]
    shown = [figure.data[0].text[0][0], *figure.data[0].x]
    assert all("<b>x" not in each and "$" not in each for each in shown)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (1e-3, 1e1, [0.001, 0.01, 0.1, 1, 10]),
        (0.011, 0.21, [0.02, 0.05, 0.1, 0.2]),
        (3.0, 4.0, [3.0, 4.0]),
        (3.0, 3.0, [3.0]),
        (1e-9, 1e3, [1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 1e1, 1e3]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, wanted: list[float]) -> None:
    assert log_ticks(np.log10(low), np.log10(high)) == pytest.approx(wanted)


def test_ranking() -> None:
    kept, dropped = ranking_figure([0.5, 0.1, 0.0], [False, True, True]).data
    assert list(kept.x) == [0]
    assert list(dropped.x) == [1, 2]
    assert list(dropped.y) == [0.1, 1e-6]  # a logarithm needs more than nothing
    assert list(dropped.text) == ["0.1", "0"]
    assert (kept.name, dropped.name) == ("stays (1)", "left out (2)")
    assert list(ranking_figure([0.5, 0.1]).data[0].x) == [0, 1]


def test_names_of_points_that_lie_together_are_said_once() -> None:
    assert apart([0.5, 1, 5, 6, 7, 30], ["1", "2", "16", "32", "64", "prompt"]) == ["1", "2", "16", "", "", "prompt"]
    assert apart([5, 6], ["1", "prompt"]) == ["1", "prompt"]


def test_short_names() -> None:
    assert short_names(["a.q", "b.k"]) == ["q", "k"]
    assert short_names(["a.proj", "b.proj"]) == ["a.proj", "b.proj"]


def test_plain_text() -> None:
    assert plain("<i>$x$</i> &") == "&lt;i&gt;&#36;x&#36;&lt;/i&gt; &amp;"


def test_style() -> None:
    figure = styled(ranking_figure([1.0]), transparent=False)
    assert figure.layout.paper_bgcolor is None
