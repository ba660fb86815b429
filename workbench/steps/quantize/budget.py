"""Mixed precision: more bits for the layers that mind rounding most, fewer for the rest."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers import calibration
from workbench.layers.sensitivity import sensitivity
from workbench.layers.step import LayerStep
from workbench.models import sharing
from workbench.models.experts import as_layers, coverage
from workbench.models.packed import GroupLinear, dense_weight, replace_module
from workbench.step import Forecast
from workbench.steps.quantize.gptq import GPTQ
from workbench.steps.quantize.head import pack_head
from workbench.steps.quantize.hqq import HQQ
from workbench.steps.quantize.rounding import RTN, GroupStep
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

WIDTHS = (2, 3, 4, 5, 6, 8)
METHODS: dict[str, type[GroupStep]] = {"RTN": RTN, "HQQ": HQQ, "GPTQ": GPTQ}


class Budget(LayerStep):
    """Gives every layer its own number of bits, so that the whole costs least quality for its size.

    Measures how much each layer minds being rounded to 2 to 8 bits, then spends the bits where they save most. Good
    when one width is just too coarse and the next too large; only the layers that get 4 bits have a fast kernel.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1911.03852"
    caveat: ClassVar[str] = (
        "not faster: only the layers that got 4 bits have a kernel that multiplies straight from them"
    )
    needs_data: ClassVar[bool] = True
    bits_per_weight: float = Field(
        default=4.5,
        ge=2.0,
        le=9.0,
        description="Average over the quantized layers, their scales and zero points included.",
    )
    method: Literal["RTN", "HQQ", "GPTQ"] = Field(
        default="GPTQ", description="How each layer is rounded once its width is known; see the steps of these names."
    )
    group_size: Literal[32, 64, 128, 256] = Field(
        default=64, description="Weights along a row that share a scale; smaller is more exact and larger."
    )
    head: bool = Field(
        default=True,
        description="Store the output head (and an embedding tied to it) in 8 bits; not part of the average.",
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Measure, choose, then round block by block."""
        assert task is not None
        widths = self.widths(variant, task, progress)
        steps = {bits: METHODS[self.method](bits=bits, group_size=self.group_size) for bits in WIDTHS}
        model = sharing.share(as_layers(variant.model))
        notes = coverage(model, widths, self.label)
        for block in calibration.visit(variant, model, task, progress, METHODS[self.method].hessians):
            for path in block.layers.keys() & widths.keys():
                layer = steps[widths[path]].replace(model.get_submodule(path), block.layers[path])
                replace_module(model, path, layer)
        if self.head:
            pack_head(model)
        return variant.derive(self, model, notes)

    def widths(self, variant: Variant, task: Task | Text, progress: Progress | None = None) -> dict[str, int]:
        """Bits of every layer by path: what is least sensitive in sum, within the budget.

        Raises:
            InvalidInput: even 2 bits everywhere take more than the budget.
        """
        chosen, model = self.layers(variant), as_layers(variant.model)
        plain = RTN(group_size=self.group_size, exclude=self.exclude)
        found = sensitivity(variant, task, plain, WIDTHS, progress=progress)
        shapes = {path: tuple(dense_weight(model.get_submodule(path)).shape) for path in chosen}
        options = {
            path: [Option(bits, _bytes(*shapes[path], bits, self.group_size), float(kl))
                   for bits, kl in zip(WIDTHS, found.kl[row], strict=True)]
            for row, path in enumerate(chosen)
        }  # fmt: skip
        room = self.bits_per_weight / 8 * sum(rows * columns for rows, columns in shapes.values())
        least = sum(each[0].size for each in options.values())
        if least > room:
            bits = 8 * least / (room * 8 / self.bits_per_weight)
            raise InvalidInput(
                f"Even 2 bits take {bits:.2f} bits a weight with their scales: raise bits_per_weight to that."
            )
        return spend(options, room)

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes from the budget."""
        model = as_layers(variant.model)
        chosen = [model.get_submodule(path) for path in self.layers(variant)]
        packed = sum(dense_weight(layer).numel() for layer in chosen) * self.bits_per_weight / 8
        head = RTN(head=self.head, exclude=self.exclude).forecast(variant)
        plain = RTN(head=False, exclude=self.exclude).forecast(variant)
        return Forecast(
            owned_bytes=round(packed) + head.owned_bytes - plain.owned_bytes,
            weight_bytes=round(variant.total_bytes - sharing.total_bytes(chosen) + packed)
            + (head.weight_bytes - plain.weight_bytes),
            seconds=None,
        )


class Option(NamedTuple):
    """A width that a layer could have.

    Attributes:
        bits: the width.
        size: bytes it would take.
        harm: divergence it would cause, nats a token.
    """

    bits: int
    size: float
    harm: float


def spend(options: Mapping[str, list[Option]], room: float) -> dict[str, int]:
    """Bits of every layer, least harm in sum within `room` bytes, as if harms add up.

    Starts from each layer's smallest option and takes, while they fit, the steps up that save most harm a byte. Options
    above the line between their neighbours are never worth taking, so this is optimal up to the last step.
    """
    chosen = {path: each[0] for path, each in options.items()}
    left = room - sum(each.size for each in chosen.values())
    steps = [step for path, each in options.items() for step in _steps_up(path, each)]
    for _, path, option in sorted(steps, key=lambda step: (step[0], step[1], step[2].bits)):
        extra = option.size - chosen[path].size
        if 0 < extra <= left:
            chosen[path], left = option, left - extra
    return {path: option.bits for path, option in chosen.items()}


def _steps_up(path: str, options: list[Option]) -> Iterator[tuple[float, str, Option]]:
    """Slope (harm a byte, negative), path and target of each step along the lower convex hull of a layer's options."""
    at = 0
    while at < len(options) - 1:
        slopes = [(each.harm - options[at].harm) / (each.size - options[at].size) for each in options[at + 1 :]]
        steepest = int(np.argmin(slopes))
        if slopes[steepest] >= 0:
            return
        at += 1 + steepest
        yield slopes[steepest], path, options[at]


@cache
def _bytes(rows: int, columns: int, bits: int, group_size: int) -> int:
    """Bytes of a packed layer of that shape, as it is held here."""
    groups = -(-columns // group_size)
    codes = torch.zeros(rows, columns, dtype=torch.uint8)
    scale, zero = torch.ones(rows, groups), torch.ones(rows, groups)
    packed = GroupLinear.from_codes(codes, scale, zero, None, bits, group_size)
    return sum(buffer.numel() * buffer.element_size() for buffer in packed.buffers())
