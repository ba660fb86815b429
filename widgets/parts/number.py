"""A number that is taken as it was typed, with a slider where its range is known."""

import math
from typing import Any

import traitlets

from widgets.parts import ui
from workbench.core.errors import InvalidInput


class Number(ui.HBox):
    """A box to type in, beside a slider that stands at the notch nearest to what was typed.

    A slider's own readout moves what is typed, or set by code, to the nearest notch without a word.

    Attributes:
        value: the number as typed, in or out of range; whole ones of a number that counts are an `int`.
        slider: for the mouse and the arrow keys, or None.
        box: for the keyboard.
    """

    value = traitlets.Any()

    def __init__(
        self,
        value: float,
        low: float | None = None,
        high: float | None = None,
        *,
        notch: float | None = None,
        by_factors: bool = False,
        whole: bool = False,
        description: str = "",
        tooltip: str | None = None,
    ) -> None:
        """A slider needs `low`, `high` and the size of a `notch`; `by_factors`, that of its decimal logarithm."""
        self.description = description  # no tooltip: ipywidgets cannot show a box that has one
        self.low, self.high, self.whole = low, high, whole
        self._notch, self._by_factors = notch, by_factors
        self.slider: Any = None
        self.box = ui.FloatText(value, step=1 if whole else None, tooltip=tooltip)
        if notch is None:
            self.box.description = description
        else:
            kind = ui.FloatLogSlider if by_factors else ui.FloatSlider
            ends = {"min": self._place(low), "max": self._place(high), "step": notch}
            self.slider = kind(value, description=description, tooltip=tooltip, readout=False, **ends)
            self.slider.observe(lambda change: self._slid(change["new"]), "value")
        super().__init__([self.box] if self.slider is None else [self.slider, self.box])
        self.add_class("wb-number")
        self.observe(lambda _: self._show(), "value")
        self.box.observe(lambda change: self._take(change["new"]), "value")
        self.value = value

    @property
    def checked(self) -> Any:
        """The value.

        Raises:
            InvalidInput: it is out of range, or not whole.
        """
        inside = (self.low is None or self.low <= self.value) and (self.high is None or self.value <= self.high)
        if inside and (isinstance(self.value, int) or not self.whole):
            return self.value
        kind = "a whole number" if self.whole else "a number"
        raise InvalidInput(f"{self.description} is {kind} from {self.low:g} to {self.high:g}, not {self.value:g}.")

    def reach(self, high: float, value: float) -> None:
        """Let it go up to another number, and set it."""
        self.high = high
        if self.slider is not None:
            self.slider.max = max(self.slider.min, self._place(high))
        self.value = value

    def _take(self, number: float) -> None:
        self.value = int(number) if self.whole and float(number).is_integer() else number

    def _show(self) -> None:
        self.box.value = self.value
        if self.slider is not None and not self._stands_at(self.slider.value):
            self.slider.value = self._nearest()

    def _slid(self, number: float) -> None:
        """Follow the slider, but not the place it was sent to: a page says that back, off by a rounding error."""
        if not self._stands_at(number):
            self._take(float(f"{number:.2g}" if self._by_factors else f"{number:.12g}"))

    def _stands_at(self, number: float) -> bool:
        """Whether the slider shows the value there already; sent there again, it would jump under a moving hand."""
        return abs(self._place(number) - self._place(self._nearest())) < self._notch / 4

    def _nearest(self) -> float:
        """The notch nearest to the value."""
        low, high = self.slider.min, self.slider.max
        at = min(high, max(low, self._place(self.value)))
        at = min(high, low + round((at - low) / self._notch) * self._notch)
        return 10**at if self._by_factors else at

    def _place(self, number: float) -> float:
        """Where on the slider's axis a number is."""
        if not self._by_factors:
            return number
        return math.log10(number) if number > 0 else -math.inf
