"""What a panel knows of the tools in it, and they of the panel."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import ipywidgets as ipw

from workbench.core.jobs import Job
from workbench.step import Step
from workbench.variant import Variant

if TYPE_CHECKING:
    from widgets.parts.fields import Form
    from widgets.session import Session


class Host(Protocol):
    """What a tool may ask of the panel that it stands in."""

    bench: "Session"
    family: str

    @property
    def kind(self) -> type[Step]:
        """The method that is chosen."""

    @property
    def step(self) -> Step:
        """The step that the panel is set to; raises `InvalidInput` while a knob is out of range."""

    @property
    def variant(self) -> Variant:
        """The variant that it would start from."""

    @property
    def settings(self) -> tuple[Step, Variant] | tuple[None, None]:
        """Both; nothing while a knob is out of range."""

    @property
    def form(self) -> "Form":
        """The controls of the chosen method."""

    def set(self, step: Step) -> None:
        """Show a step's method and knobs."""


class Tool:
    """A part of a family's panel. A subclass in a module of `widgets.tools` is all that a new one takes.

    Attributes:
        panel: where it stands.
        bench: whose variants it looks at.
        widget: what is shown.
        stands: near the knobs, or below the button that applies them.
        order: among others in the same place.
    """

    kinds: ClassVar[list[type["Tool"]]] = []
    stands: ClassVar[Literal["near", "below"]] = "below"
    order: ClassVar[int] = 0
    widget: ipw.Widget

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Tool.kinds.append(cls)

    def __init__(self, panel: Host) -> None:
        self.panel, self.bench = panel, panel.bench

    @staticmethod
    def fits(kind: type[Step]) -> bool:
        """Whether it has something to say on a method."""
        raise NotImplementedError

    def follow(self, step: Step | None, variant: Variant | None) -> None:
        """The settings have changed; None stands for settings that are refused."""

    def running(self, job: Job) -> None:
        """How what the panel applies is going; called with the bench's lock held, at most five times a second."""

    @property
    def static(self) -> str:
        """What it found, as HTML for a page without a kernel."""
        return ""
