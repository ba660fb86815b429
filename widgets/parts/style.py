"""How the bench looks: one style sheet, scoped to it, that takes every colour from JupyterLab's theme."""

from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as ipw

FOLDER = Path(__file__).parent
CSS = (FOLDER / "bench.css").read_text(encoding="utf-8")


class Care(anywidget.AnyWidget):
    """Nothing to see: gives a name to every slider beside it, and lets no click overtake a change."""

    _esm = FOLDER / "care.js"


def framed(widget: ipw.Widget) -> ipw.Box:
    """A widget in the bench's look, ready to be displayed alone."""
    sheet = ipw.HTML(f"<style>{CSS}</style>")
    sheet.add_class("wb-sheet")
    care = Care()
    care.add_class("wb-sheet")
    frame = ipw.VBox([sheet, care, widget])
    frame.add_class("wb-bench")
    return frame


def close_tree(widget: Any) -> None:
    """Close a widget, everything in it, and the layouts and styles that ipywidgets made for them, outermost first."""
    children = getattr(widget, "children", ())
    parts = [getattr(widget, name, None) for name in ("layout", "style")]
    widget.close()
    for part in parts:
        if isinstance(part, ipw.Widget):
            part.close()
    for child in children:
        close_tree(child)
