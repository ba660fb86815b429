"""A variant and what should be known of it, readable without a kernel."""

from html import escape

from workbench.core import units
from workbench.core.drawn import HTML, draws
from workbench.core.listed import Listed
from workbench.display.report import STYLE, table
from workbench.variant import Variant


@draws(Variant, HTML)
def variant_html(variant: Variant) -> str:
    """Its name, size and recipe, and every note; one that lists something as a table."""
    facts = "closed"
    if not variant.closed:
        facts = f"{units.size(variant.total_bytes)} on {variant.device}, {variant.recipe!r}"
    said = "".join(f"<li>{_note(each)}</li>" for each in variant.notes)
    notes = f"<ul>{said}</ul>" if said else ""
    return f'{STYLE}<div class="wb-report"><p><b>{escape(variant.name)}</b>: {escape(facts)}</p>{notes}</div>'


def _note(note: str) -> str:
    if isinstance(note, Listed):
        return escape(note.heading) + table(note.columns, note.rows, words=True)
    return escape(note)
