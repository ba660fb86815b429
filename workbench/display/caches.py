"""What a variant's caches hold, as a table that reads without a kernel."""

from html import escape

from workbench.analysis.caches import Caches
from workbench.core import units
from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE, table


@draws(Caches, HTML)
def caches_html(found: Caches) -> str:
    """A row a cache; a sentence where there is none."""
    head = ("Cache", "Entries", "Size", "Hits", "Misses", "Evicted", "Counted for")
    rows = [
        (each.kind, f"{each.entries}", units.size(each.bytes), f"{each.hits}", f"{each.misses}", f"{each.evictions}",
         each.counted)
        for each in found.caches
    ]  # fmt: skip
    shown = table(head, rows, words=True) if rows else ""
    return f'{STYLE}<div class="wb-report"><p>{escape(found.sentence)}</p>{shown}</div>'
