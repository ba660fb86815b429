"""Every Plotly figure: built from numbers, outside text escaped, transparent when a page brings its own colours."""

from workbench.display.ablation import ablation_figure, ablation_html
from workbench.display.batching import batching_figure, batching_html
from workbench.display.caches import caches_html
from workbench.display.changes import closeup_figure, diff_figure, histogram_figure
from workbench.display.check import check_html
from workbench.display.comparison import comparison_figure
from workbench.display.history import history_figure
from workbench.display.kernels import kernels_html
from workbench.display.layers import ranking_figure, sensitivity_figure
from workbench.display.leaderboard import leaderboard_html
from workbench.display.load import load_figure, load_html, load_timeline
from workbench.display.page import comparison_page, search_page
from workbench.display.plan import plan_figure, plan_html
from workbench.display.report import comparison_html
from workbench.display.roofline import devices_html, explanation_html, roofline_figure
from workbench.display.search import search_figure, search_html
from workbench.display.style import COLOURS, NEUTRAL, plain, styled
from workbench.display.training import curve_data, curve_figure
from workbench.display.variant import variant_html

__all__ = [
    "COLOURS",
    "NEUTRAL",
    "ablation_figure",
    "ablation_html",
    "batching_figure",
    "batching_html",
    "caches_html",
    "check_html",
    "closeup_figure",
    "comparison_figure",
    "comparison_html",
    "comparison_page",
    "curve_data",
    "curve_figure",
    "devices_html",
    "diff_figure",
    "explanation_html",
    "histogram_figure",
    "history_figure",
    "kernels_html",
    "leaderboard_html",
    "load_figure",
    "load_html",
    "load_timeline",
    "plain",
    "plan_figure",
    "plan_html",
    "ranking_figure",
    "roofline_figure",
    "search_figure",
    "search_html",
    "search_page",
    "sensitivity_figure",
    "styled",
    "variant_html",
]
