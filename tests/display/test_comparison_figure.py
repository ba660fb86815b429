"""The figure of a comparison: markers that stay apart, and room for many variants."""

import pytest

from workbench.core.estimate import Estimate
from workbench.display import COLOURS, comparison_figure
from workbench.display.labels import sides
from workbench.display.style import LONGEST_LABEL, ROW, SYMBOLS, label, symbol
from workbench.measurement.comparison import Comparison
from workbench.measurement.runs import Run


def compared(*names: str) -> Comparison:
    units = {"inter_token_latency": "s", "perplexity": "", "weight_bytes": "bytes"}
    return Comparison([
        Run(
            variant=name, source="here", recipe=[], task="t", fingerprint="f", settings={}, environment={}, session="s",
            measured_at="now",
            estimates={metric: Estimate.exact(1.0 + at, unit) for metric, unit in units.items()},
        )
        for at, name in enumerate(names)
    ])  # fmt: skip


def test_no_two_of_as_many_as_there_are_looks_are_drawn_alike() -> None:
    many = len(COLOURS) * len(SYMBOLS)
    figure = comparison_figure(compared(*(f"variant {each}" for each in range(many))))
    for trace in figure.data:
        assert len(set(zip(trace.marker.color, trace.marker.symbol, strict=True))) == many
    assert [symbol(look) for look in (0, 7, 8, 16)] == ["circle", "circle", "diamond", "square-open"]
    assert symbol(many) == symbol(0)


def test_looks_are_those_of_the_list_where_they_are_given() -> None:
    figure = comparison_figure(compared("a", "b"), colours=["#000", "#111"], symbols=["star", "cross"])
    assert all(trace.marker.symbol == ("star", "cross") for trace in figure.data)
    assert figure.data[0].marker.color == ("#000", "#111")


def test_a_variant_has_its_row_however_many_there_are() -> None:
    few, nine, forty = (comparison_figure(compared(*map(str, range(count)))) for count in (2, 9, 40))
    assert few.layout.height == nine.layout.height
    low, high = forty.layout.yaxis.domain
    margins = forty.layout.margin.t + forty.layout.margin.b
    assert (high - low) * (forty.layout.height - margins) == pytest.approx(40 * ROW)
    assert forty.layout.yaxis.tickvals == tuple(map(str, range(40)))
    assert (few.data[2].mode, forty.data[2].mode) == ("markers+text", "markers")


def test_long_names_are_short_beside_the_figure_and_whole_in_the_hover() -> None:
    long = "<b>SmolLM2 with many words</b> " + "x" * 60 + " g64"
    figure = comparison_figure(compared("base", long))
    assert figure.layout.yaxis.ticktext[1].startswith("&lt;b&gt;Smol")
    assert figure.layout.yaxis.ticktext[1].endswith(" g64")
    for trace in figure.data:
        assert "x" * 60 in trace.hovertext[1]
        assert "<b>" not in trace.hovertext[1]


@pytest.mark.parametrize("length", [1, LONGEST_LABEL - 1, LONGEST_LABEL, LONGEST_LABEL + 1, 1000])
@pytest.mark.parametrize("longest", [LONGEST_LABEL, LONGEST_LABEL + 1])
def test_a_label_is_never_longer_than_it_may_be(length: int, longest: int) -> None:
    name = "".join(chr(97 + at % 26) for at in range(length))
    short = label(name, longest)
    assert short == name if length <= longest else len(short) == longest
    assert name.startswith(short.partition("…")[0])
    assert name.endswith(short.rpartition("…")[2])


def test_names_of_near_points_stand_on_different_sides() -> None:
    together = sides([(100, 100)] * 4, ["NF4", "Int8", "GPTQ", "AWQ"], [10] * 4)
    assert together == ["top center", "bottom center", "middle right", "middle left"]
    assert sides([(100, 100), (300, 100)], ["NF4", "Int8"], [10, 10]) == ["top center", "top center"]
    below = sides([(100, 100), (100, 140)], ["NF4", "Int8"], [10, 20])  # its own name would stand in the other bubble
    assert below == ["bottom center", "top center"]


def test_names_of_a_comparison_do_not_hide_each_other() -> None:
    same = compared("base", "NF4", "Int8")
    runs = [run.model_copy(update={"estimates": same.runs[0].estimates}) for run in same.runs]
    figure = comparison_figure(Comparison(runs))
    assert len(set(figure.data[2].textposition)) == 3
