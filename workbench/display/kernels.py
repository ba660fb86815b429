"""What a variant runs on, as a table that reads without a kernel."""

from html import escape

from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE
from workbench.measurement.kernels import Kernels


@draws(Kernels, HTML)
def kernels_html(found: Kernels) -> str:
    """A line for each format and shape: the product for one row and for many, and what it was tried against."""
    table = found.table()
    head = "".join(f"<th>{escape(str(name))}</th>" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in table.itertuples(index=False)
    )
    return f'{STYLE}<div class="wb-report"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.0f}"
    return escape(str(value))
