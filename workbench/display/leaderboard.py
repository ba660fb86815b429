"""Ranked submissions as a table; names are anybody's text."""

from html import escape

from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE, footnote, table
from workbench.measurement import scales
from workbench.teaching.leaderboard import Leaderboard


@draws(Leaderboard, HTML)
def leaderboard_html(board: Leaderboard) -> str:
    """A row a submission, those that keep to the bounds first."""
    heads = ["Place", "Name", *map(scales.title, board.metrics), "Bounds", "Recipe"]
    where = f"<small>{escape(footnote(board.comparison))}</small>" if board.comparison else ""
    return f'{STYLE}<div class="wb-report">{table(heads, board.rows, words=True)}{where}</div>'
