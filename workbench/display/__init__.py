"""Every Plotly figure: built from numbers, outside text escaped, transparent when a page brings its own colours."""

from workbench.display.changes import closeup_figure, diff_figure, histogram_figure
from workbench.display.comparison import comparison_figure
from workbench.display.kernels import kernels_html
from workbench.display.layers import ranking_figure, sensitivity_figure
from workbench.display.report import comparison_html
from workbench.display.style import COLOURS, NEUTRAL, plain, styled
from workbench.display.training import curve_data, curve_figure

__all__ = [
    "COLOURS",
    "NEUTRAL",
    "closeup_figure",
    "comparison_figure",
    "comparison_html",
    "curve_data",
    "curve_figure",
    "diff_figure",
    "histogram_figure",
    "kernels_html",
    "plain",
    "ranking_figure",
    "sensitivity_figure",
    "styled",
]
