"""ipywidgets' controls with one layout, and one style of a kind, between them.

ipywidgets makes both for every control, and a page that is loaded again waits for each of them: they were two thirds of
all that it waits for. Looks come from the style sheet, so nothing is lost; never set anything on a shared one.
"""

import threading
from typing import Any

import ipywidgets as ipw
import traitlets

_shared: dict[str, Any] = {}
_lock = threading.Lock()


def shared(kind: type[ipw.Widget], **traits: str) -> Any:
    """The layout or style that all have in common."""
    key = f"{kind.__name__} {traits}"
    with _lock:
        if key not in _shared or _shared[key].comm is None:  # `Widget.close_all` was called
            _shared[key] = kind(**traits)
        return _shared[key]


def is_shared(widget: ipw.Widget) -> bool:
    """Whether it is a layout or style that others use too."""
    with _lock:
        return any(widget is each for each in _shared.values())


def show(widget: ipw.DOMWidget, shown: bool) -> None:
    """Show a control, or take it off the page for now."""
    widget.layout = shared(ipw.Layout) if shown else shared(ipw.Layout, display="none")


class Control(ipw.DOMWidget):
    """A widget that makes no layout and style of its own."""

    @traitlets.default("layout")
    def _common_layout(self) -> Any:
        return shared(ipw.Layout)

    @traitlets.default("style")
    def _common_style(self) -> Any:
        return shared(self.traits()["style"].klass)


def _common(kind: type[ipw.Widget]) -> Any:
    return type(kind.__name__, (Control, kind), {"__module__": __name__, "__doc__": kind.__doc__})


Accordion = _common(ipw.Accordion)
Button = _common(ipw.Button)
Checkbox = _common(ipw.Checkbox)
Combobox = _common(ipw.Combobox)
Dropdown = _common(ipw.Dropdown)
FloatLogSlider = _common(ipw.FloatLogSlider)
FloatSlider = _common(ipw.FloatSlider)
FloatText = _common(ipw.FloatText)
HBox = _common(ipw.HBox)
HTML = _common(ipw.HTML)
SelectMultiple = _common(ipw.SelectMultiple)
Text = _common(ipw.Text)
Textarea = _common(ipw.Textarea)
ToggleButton = _common(ipw.ToggleButton)
ToggleButtons = _common(ipw.ToggleButtons)
VBox = _common(ipw.VBox)
