"""How the bench looks: one style sheet, scoped to it, that takes every colour from the notebook's theme."""

import sys
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as ipw

from widgets.parts import ui

FOLDER = Path(__file__).parent
CSS = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("bench.css", "theme.css"))
VIEW = "application/vnd.jupyter.widget-view+json"


class Care(ui.Control, anywidget.AnyWidget):
    """Nothing to see: gives a name to every slider beside it, and lets no click overtake a change."""

    _esm = FOLDER / "care.js"


class Frame(ipw.VBox):
    """What is displayed; in Colab it names the widget manager that knows anywidget, which its own does not.

    Colab adds that name to what `display` shows, but not to what a cell ends with.
    """

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        colab = sys.modules.get("google.colab.output")
        if colab is None:
            return bundle
        colab.enable_custom_widget_manager()
        return bundle, {VIEW: {"colab": {"custom_widget_manager": {"url": colab._widgets._installed_url}}}}


def framed(widget: ipw.Widget) -> ipw.Box:
    """A widget in the bench's look, ready to be displayed alone."""
    sheet = ui.HTML(f"<style>{CSS}</style>")
    sheet.add_class("wb-sheet")
    care = Care()
    care.add_class("wb-sheet")
    frame = Frame([sheet, care, widget])
    frame.add_class("wb-bench")
    return frame


def close_tree(widget: Any) -> None:
    """Close a widget, everything in it, and the layouts and styles that are theirs alone, outermost first."""
    children = getattr(widget, "children", ())
    parts = [getattr(widget, name, None) for name in ("layout", "style")]
    widget.close()
    for part in parts:
        if isinstance(part, ipw.Widget) and not ui.is_shared(part):
            part.close()
    for child in children:
        close_tree(child)
