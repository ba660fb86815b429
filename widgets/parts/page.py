"""A text in the kernel that code of our own draws in the page."""

from typing import Any

import anywidget
import ipywidgets as ipw
import traitlets

from widgets.parts import ui


class Text(ipw.Widget):
    """A text, in a model of ipywidgets' own."""

    value = traitlets.Unicode().tag(sync=True)


class Page(ui.Control, anywidget.AnyWidget):
    """A widget whose code draws `value` anew whenever it changes, and whole in a page that comes late or once more.

    The value is in a model beside it. To a widget of its own anywidget passes nothing on, then or later, if the page
    took more than two seconds to load the widget's code.
    """

    _text = traitlets.Unicode().tag(sync=True)

    def __init__(self, value: str = "", **traits: Any) -> None:
        self._held = Text(value=value)
        super().__init__(_text=self._held.model_id, **traits)

    @property
    def value(self) -> str:
        """What is drawn."""
        return str(self._held.value)

    @value.setter
    def value(self, value: str) -> None:
        self._held.value = value

    def close(self) -> None:
        """Take it off the page."""
        super().close()
        self._held.close()
