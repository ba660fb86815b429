"""One control for each kind of knob: bounds, choices and texts are read from the step's fields."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import ipywidgets as ipw
from pydantic.fields import FieldInfo

from widgets.parts import ui
from widgets.parts.html import help_line, words
from widgets.parts.number import Number
from workbench.step import Step

LONGEST_SLIDER = 10_000  # whole numbers; a wider range is typed only
LOG_RANGE = 1_000  # from this ratio of highest to lowest, a slider moves by factors


class Form:
    """The knobs of a step as controls.

    Attributes:
        widget: the controls, each with its help.
        controls: by field name.
    """

    def __init__(self, step: type[Step]) -> None:
        self.kind = step
        self.controls = {name: control(name, field) for name, field in step.model_fields.items()}
        short, long, folded = [], [], []  # what is typed at length stands below the rest
        for name in sorted(step.model_fields, key=lambda name: _inherited(step, name)):
            row = ui.VBox([self.controls[name], ui.HTML(help_line(step.model_fields[name].description or ""))])
            row.add_class("wb-field")
            if isinstance(self.controls[name], ipw.Textarea):
                row.add_class("wb-long")
            at = folded if name in step.folded else long if isinstance(self.controls[name], ipw.Textarea) else short
            at.append(row)
        shown = ui.VBox([*short, *long])
        shown.add_class("wb-form")
        self.widget = ui.VBox([shown])
        if folded:
            more = ui.VBox(folded)
            more.add_class("wb-form")
            self.widget.children = [shown, ui.Accordion([more], titles=["More settings"])]

    def step(self) -> Step:
        """The step as set.

        Raises:
            InvalidInput: a knob is out of range, said in the same words as in code.
        """
        return self.kind(**{name: each.value for name, each in self.controls.items()})

    def offer(self, variants: Sequence[str]) -> None:
        """Suggest the names of variants where one is asked for."""
        for each in self.controls.values():
            if isinstance(each, ipw.Combobox):
                each.options = tuple(variants)

    def set(self, step: Step) -> None:
        """Show a step's knobs."""
        for name, each in self.controls.items():
            each.value = getattr(step, name)


def _inherited(step: type[Step], name: str) -> bool:
    """Whether a knob comes from the class that folds some of its own away: those of the method itself stand first."""
    base = next((each for each in step.__mro__ if "folded" in vars(each)), step)
    return base is not step and name in base.model_fields


def control(name: str, field: FieldInfo) -> ipw.Widget:
    """The control that fits a field's type and bounds, set to its default."""
    common: dict[str, Any] = {"description": words(name), "tooltip": field.description, "value": field.default}
    if get_origin(field.annotation) is Literal:
        choices = get_args(field.annotation)
        kind = ui.ToggleButtons if len(choices) <= 6 else ui.Dropdown
        return kind(options=[(str(choice), choice) for choice in choices], **common)
    if field.annotation is bool:
        return ui.Checkbox(indent=False, **common)
    if field.annotation is int:
        return _whole(field, common)
    if field.annotation is float:
        return _real(field, common)
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("names") == "variants":
        return ui.Combobox(continuous_update=False, ensure_option=False, **common)
    longest = max((bound.max_length for bound in field.metadata if hasattr(bound, "max_length")), default=None)
    if longest is None or longest > 200:
        return ui.Textarea(rows=3, continuous_update=False, **common)
    return ui.Text(continuous_update=False, **common)


def _whole(field: FieldInfo, common: dict[str, Any]) -> Number:
    low, high = bounds(field, 1)
    slides = low is not None and high is not None and high - low <= LONGEST_SLIDER
    return Number(low=low, high=high, notch=1 if slides else None, whole=True, **common)


def _real(field: FieldInfo, common: dict[str, Any]) -> Number:
    low, high = bounds(field, 0)
    if low is None or high is None:
        return Number(low=low, high=high, **common)
    if low > 0 and high / low >= LOG_RANGE:
        return Number(low=low, high=high, notch=0.1, by_factors=True, **common)
    step = _nice((high - low) / 200)
    inner_low = low + step if _is_open(field, "gt") else low
    inner_high = high - step if _is_open(field, "lt") else high
    return Number(low=inner_low, high=inner_high, notch=step, **common)


def bounds(field: FieldInfo, unit: float) -> tuple[float | None, float | None]:
    """Lowest and highest value; `unit` is what separates an open bound from the nearest value."""
    low = high = None
    for bound in field.metadata:
        low = bound.ge if hasattr(bound, "ge") else bound.gt + unit if hasattr(bound, "gt") else low
        high = bound.le if hasattr(bound, "le") else bound.lt - unit if hasattr(bound, "lt") else high
    return low, high


def _is_open(field: FieldInfo, side: str) -> bool:
    return any(hasattr(bound, side) for bound in field.metadata)


def _nice(step: float) -> float:
    """The step rounded down to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return max(factor for factor in (1, 2, 5) if factor * power <= step * 1.0001) * power
