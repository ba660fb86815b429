"""What a variant runs on, as a table that reads without a kernel."""

from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE, table
from workbench.measurement.kernels import Kernels


@draws(Kernels, HTML)
def kernels_html(found: Kernels) -> str:
    """A line for each format and shape: the product for one row and for many, and what it was tried against."""
    frame = found.table()
    rows = [tuple(map(_cell, row)) for row in frame.itertuples(index=False)]
    return f'{STYLE}<div class="wb-report">{table(tuple(frame.columns), rows)}</div>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.0f}"
    return str(value)
