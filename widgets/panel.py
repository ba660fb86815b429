"""The panel of one step family, drawn from the steps themselves: a new step needs no line here."""

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import ipywidgets as ipw

from widgets.parts import html, ui
from widgets.parts.code import Snippet, call
from widgets.parts.fields import Form
from widgets.parts.style import close_tree, framed
from widgets.tool import Tool
from widgets.tools import TOOLS
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.recipe import Recipe, step_from_json
from workbench.runtime.forward import memory_guard
from workbench.step import Step
from workbench.steps import families
from workbench.variant import Variant

if TYPE_CHECKING:
    from widgets.session import Session

MOST_BUTTONS = 6  # methods; a longer list is a drop-down


class Panel:
    """Method, knobs, forecast and code of one family, on a bench.

    Attributes:
        bench: where variants come from and go to.
        family: the family's name.
        widget: what is shown.
        forms: the controls of every method opened so far, by class.
        visible: whether somebody looks at it, as far as that is known.
        tools: what helps to find the settings, where a method of the family has it, by class.
    """

    def __init__(self, bench: "Session", family: str, visible: bool = True) -> None:
        if family not in families():
            raise InvalidInput(f"There is no step family '{family}': use one of {', '.join(families())}.")
        self.bench = bench
        self.family = family
        self.forms: dict[type[Step], Form] = {}
        self._forecasts: WeakKeyDictionary[Variant, dict[tuple[Step, bool], str]] = WeakKeyDictionary()
        self._frame: ipw.Box | None = None
        self.visible = visible
        self._task = bench.task
        self._news = self._refusal = self._made = ""
        self._relisting = False
        self._build(families()[family])
        self._list_targets()
        self._show_method()
        bench.watch(self._list_targets)
        bench.panels.append(self)

    def _build(self, steps: list[type[Step]]) -> None:
        few = len(steps) <= MOST_BUTTONS
        self.method = (ui.ToggleButtons if few else ui.Dropdown)(
            options=[(step.__name__ if few else html.summary(step), step) for step in steps],
            description="Step",
            tooltip="What to apply",
        )
        self.target = ui.Dropdown(
            options=[self.bench.start], description="Apply to", tooltip="The variant to start from"
        )
        self.explanation, self.forecast, self.message = ui.HTML(), ui.HTML(), ui.HTML()
        self.form_place = ui.VBox()
        self.button = ui.Button(
            description="Apply", button_style="primary", tooltip="Make a new variant with these settings"
        )
        self.onward = ui.Button(description="Go on", tooltip="Start from what was just made")
        ui.show(self.onward, False)
        self.code = Snippet()
        self.tools: dict[type[Tool], Tool] = {tool: tool(self) for tool in TOOLS if any(map(tool.fits, steps))}
        footer = ui.HBox([self.button, self.onward, self.forecast])
        footer.add_class("wb-footer")
        knobs = [self.method, self.explanation, self.target, self.form_place]
        near, below = ([each.widget for each in self.tools.values() if each.stands == at] for at in ("near", "below"))
        self.widget = ui.VBox([*knobs, *near, footer, self.message, self.code, *below])
        self.widget.add_class("wb-panel")
        self.method.observe(lambda _: self._show_method(), "value")
        self.target.observe(lambda _: self._relisting or self._changed(), "value")
        self.button.on_click(lambda _: self.apply())
        self.onward.on_click(lambda _: self._go_on())

    @property
    def kind(self) -> type[Step]:
        """The method that is chosen."""
        return self.method.value

    @property
    def variant(self) -> Variant:
        """The variant that it would be applied to."""
        return self.bench[self.target.value]

    @property
    def form(self) -> Form:
        """The controls of the chosen method."""
        kind = self.kind
        if kind not in self.forms:
            self.forms[kind] = Form(kind)
            self.forms[kind].offer(tuple(self.bench.variants))
            for each in self.forms[kind].controls.values():
                each.observe(lambda _: self._changed(), "value")
        return self.forms[kind]

    @property
    def step(self) -> Step:
        """The step that the panel is set to.

        Raises:
            InvalidInput: a knob is out of range.
        """
        return self.form.step()

    @property
    def settings(self) -> tuple[Step, Variant] | tuple[None, None]:
        """The step and the variant it would start from; nothing while a knob is out of range."""
        try:
            return self.step, self.variant
        except WorkbenchError:
            return None, None

    @property
    def recipe(self) -> Recipe:
        """What Apply would make: the target's recipe and the step."""
        return self.variant.recipe.then(self.step)

    @property
    def static(self) -> str:
        """What its tools have found, for a page without a kernel."""
        return "".join(tool.static for tool in self.tools.values())

    def set(self, step: Step) -> None:
        """Show a step's method and knobs."""
        self.method.value = type(step)
        self.form.set(step)

    def recall(self, knobs: dict[str, Any]) -> None:
        """Show a step that was set before, if it is still one of the family's."""
        with suppress(WorkbenchError):
            step = step_from_json(knobs)
            if isinstance(step, Step) and step.family() == self.family:
                self.set(step)

    def apply(self) -> None:
        """Queue what the panel is set to; the new variant appears on the list when it is made."""
        try:
            step, variant = self.step, self.variant
        except WorkbenchError as error:
            self._refuse(error)
            return
        label = f"{step.label} on {variant.name}"

        def work(progress: Progress) -> str:
            begun = time.monotonic()
            made = variant.apply(step, self.bench.task, progress)
            return self.bench.add(made, time.monotonic() - begun)

        def show(job: Any) -> None:
            if job.status == "done":
                self._offer(job.result)
            notes = self.bench[job.result].notes if job.status == "done" and job.result in self.bench.variants else ()
            self._say(html.job_message(job, f"Made '{job.result}': it is on the list of variants.", notes))
            for tool in self.tools.values():
                tool.running(job)

        with self.bench.lock:  # so that the worker cannot say "running" before this says "queued"
            try:
                self.bench.submit(label, work, show, key=f"{variant.name}\n{step!r}")
                self._refusal = ""
                self._say(html.message(f"{label}: queued."))
            except WorkbenchError as error:
                self._refuse(error)

    def show(self, visible: bool) -> None:
        """Say whether somebody looks at it."""
        changed, self.visible = visible and not self.visible, visible
        if changed:
            self._changed()

    def close(self) -> None:
        """Remove the panel and all its controls from the page."""
        for form in self.forms.values():
            close_tree(form.widget)
        close_tree(self.widget)
        if self._frame:
            close_tree(self._frame)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self._frame = self._frame or framed(self.widget)
        return self._frame._repr_mimebundle_(**kwargs)

    def _say(self, html: str) -> None:
        self._news = html
        self.message.value = html + self._refusal

    def _refuse(self, error: Exception) -> None:
        """Say why a click did nothing; news of earlier clicks must not wipe it away."""
        self._refusal = html.message(str(error), "error")
        self._say(self._news)

    def _offer(self, name: str) -> None:
        """Offer to start from what was just made."""
        self._made = name
        self.onward.description = f"Go on from {name}"
        self.onward.tooltip = f"Apply the next step, of any family, to {name}"
        ui.show(self.onward, True)

    def _go_on(self) -> None:
        ui.show(self.onward, False)
        if self._made in self.bench.variants:
            self.bench.go_on(self._made)

    def _list_targets(self) -> None:
        names = tuple(name for name in self.bench.variants if name not in self.bench.archived)
        for form in self.forms.values():
            form.offer(names)
        newest = names[::-1]
        if self.bench.task is not self._task:  # what was tried was tried on the one before
            self._task = self.bench.task
            self._forecasts.clear()
            self._changed()
        if self._made not in names:
            ui.show(self.onward, False)
        if self.target.options != newest:
            before = self.target.value
            kept = before if before in names else self.bench.base.name
            self._relisting = True  # the drop-down stands elsewhere for a moment: nobody chose that
            self.target.options = newest
            self.target.value = kept
            self._relisting = False
            if kept != before:
                self._changed()

    def _show_method(self) -> None:
        kind = self.method.value
        self.explanation.value = html.explanation(kind, summed_up=isinstance(self.method, ipw.Dropdown))
        self.form_place.children = [self.form.widget]
        for tool in self.tools.values():
            ui.show(tool.widget, tool.fits(kind))
        self._changed()

    def _changed(self) -> None:
        """Follow a changed knob, method or target: code at once, the rest when the worker is free."""
        for tool in self.tools.values():
            tool.follow(*self.settings)
        try:
            step, variant = self.step, self.variant
        except WorkbenchError as error:
            self.forecast.value = html.message(str(error), "error")
            self.code.value = "".join(f"# {line}" for line in str(error).splitlines(keepends=True))
            return
        self.code.value = call(self.bench.base, variant, step)
        trying = self.visible  # a trial takes seconds, which are nobody's while nobody looks
        if said := self._forecasts.get(variant, {}).get((step, trying)):
            self.forecast.value = said
            return
        self.forecast.value = html.help_line("Expected: a forecast follows when the worker is free.")

        waiting = ref(variant)

        def work() -> None:
            variant = waiting()
            if variant is None:
                return
            try:
                with memory_guard(step.label):
                    found = step.forecast(variant)
                    if found.seconds is None and self.bench.task is not None and trying:
                        found = replace(found, seconds=step.duration(variant, self.bench.task))
                    said = html.help_line(html.forecast(found))
            except WorkbenchError as error:
                said = html.help_line(str(error))
            with self.bench.lock:
                self._forecasts.setdefault(variant, {})[step, trying] = said
                if not self.bench.closed and self.target.value == variant.name and self.step == step:
                    self.forecast.value = said

        self.bench.compute(self, work)
