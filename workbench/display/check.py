"""What a check found, as a table that names every mistake."""

from html import escape

from workbench.core.drawn import HTML, draws
from workbench.display.report import STYLE, table
from workbench.teaching.found import Check


@draws(Check, HTML)
def check_html(found: Check) -> str:
    """The result, what is wrong, every point, and the numbers."""
    wrong = "".join(f"<li>{escape(each)}</li>" for each in found.mistakes)
    points = [[each.point, "✓" if each.passed else "✗", each.says] for each in found.findings]
    parts = [f"<p><b>{escape(found.sentence)}</b></p>", f"<ul>{wrong}</ul>" if wrong else ""]
    parts.append(table(["Point", "", "What was found"], points, words=True))
    if found.numbers:
        numbers = [[each.what, each.whose, str(each)] for each in found.numbers]
        parts.append(table(["Number", "Whose", "Value"], numbers))
    parts += [f"<p><small>{escape(each)}</small></p>" for each in found.notes]
    return f'{STYLE}<div class="wb-report">{"".join(parts)}</div>'
