"""Every Plotly figure: built from numbers, outside text escaped, transparent when a page brings its own colours."""

from workbench.figures.changes import closeup_figure, diff_figure, histogram_figure
from workbench.figures.comparison import comparison_figure
from workbench.figures.layers import ranking_figure, sensitivity_figure
from workbench.figures.style import COLOURS, NEUTRAL, plain, styled
from workbench.figures.training import curve_data, curve_figure

__all__ = [
    "COLOURS",
    "NEUTRAL",
    "closeup_figure",
    "comparison_figure",
    "curve_data",
    "curve_figure",
    "diff_figure",
    "histogram_figure",
    "plain",
    "ranking_figure",
    "sensitivity_figure",
    "styled",
]
