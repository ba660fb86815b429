"""Weights kept in CPU memory or on disk, for models larger than the device."""

from typing import ClassVar, Literal

from pydantic import Field

from workbench.core import units
from workbench.core.device import resolve_device
from workbench.core.progress import Progress
from workbench.runtime.offload import movable, offloaded
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


class Offload(Step):
    """Keeps most of the weights on disk or in CPU memory, and reads them from there for every token.

    A model that is larger than the device runs at all, at the price of reading its weights over a slower line each
    time: on a GPU tens of times slower, from a disk worse. On a CPU the files are mapped into memory, which costs
    nothing while there is room for them and keeps the machine from running out where there is none. It never makes a
    model that fits faster. The weights are copied: close the parent to have its memory back. An export holds all
    weights; when it is loaded they are in memory until this is applied again.
    """

    paper: ClassVar[str] = "https://huggingface.co/docs/accelerate/usage_guides/big_modeling"
    caveat: ClassVar[str] = (
        "not faster: weights are read from a slower place for every token; it is for what does not fit"
    )
    to: Literal["disk", "cpu"] = Field(
        default="disk", description="Where the weights are kept; cpu is for models on a GPU."
    )
    keep_bytes: int = Field(
        default=0,
        ge=0,
        le=1 << 46,
        description="Bytes of the blocks' weights that stay on the device, the first blocks.",
    )
    device: Literal["same", "cpu", "cuda"] = Field(default="same", description="Where the model runs.")

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Move a copy of the weights; the parent keeps its own.

        Raises:
            InvalidInput: there is nothing to move, or no such device.
            WorkbenchError: the disk has too little room.
        """
        device = variant.device if self.device == "same" else resolve_device(self.device)
        model, moved = offloaded(variant.model, self.to, self.keep_bytes, device, progress)
        place = "on disk" if self.to == "disk" else "in CPU memory"
        return variant.derive(
            self, model, [f"{units.size(moved)} of its weights are kept {place} and read every time."]
        )

    def forecast(self, variant: Variant) -> Forecast:
        """What is moved is copied."""
        sizes, left = [size for *_, size in movable(variant.model)], self.keep_bytes
        moved = 0
        for size in sizes:
            left -= size
            moved += size if left < 0 else 0
        return Forecast(owned_bytes=moved, weight_bytes=variant.total_bytes, seconds=None)
