"""Learned rounding: whether each weight is rounded up or down is learned from what its block should give."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from workbench.core.progress import Progress
from workbench.layers import calibration
from workbench.layers.blockwise import check_walk, enter_blocks, run_block
from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.experts import as_layers, coverage, gather
from workbench.models.packed import dense_weight, replace_module, stored_scale
from workbench.runtime.forward import using
from workbench.steps.quantize.rounding import Codes, Grid, GroupStep, in_groups
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

BATCH_TOKENS = 2048  # of a step


class SignRound(GroupStep):
    """Learns for every weight whether to round it up or down, and each group's range, block by block.

    What counts is what the block gives: the sign of its error's gradient moves the roundings, a little at a time. The
    slowest of the methods here, minutes for a small model on a CPU, and at 4 bits and below usually the closest to the
    model. The weights are as large, and as fast, as with plain rounding.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2309.05516"
    needs_data: ClassVar[bool] = True
    folded: ClassVar[tuple[str, ...]] = ("steps", "seed")
    steps: int = Field(default=100, ge=1, le=2000, description="Steps of learning a block; the authors take 200.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Of the order in which batches are seen.")

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Learn block after block, each on what the rounded blocks before it give."""
        chosen = frozenset(self.layers(variant))
        windows = calibration.calibration_windows(variant, task)
        model = sharing.share(as_layers(variant.model))
        notes = coverage(model, chosen, self.label)
        path, blocks = decoder_blocks(model)
        size = max(each for each in range(1, len(windows) + 1) if each == 1 or _fits(each, windows))
        progress.start(f"{self.label}: learning blocks", len(blocks) * self.steps)
        with using(self.label):
            check_walk(model)
            states, settings = enter_blocks(model, windows, size)
        rounded, chance = states, torch.Generator().manual_seed(self.seed)
        for index, block in enumerate(blocks):
            with using(self.label):
                wanted = [run_block(block, state, settings[index]) for state in states]
            layers = {
                name: _Learned(layer, self)
                for name, layer in block.named_modules()
                if f"{path}.{index}.{name}" in chosen
            }
            if not layers:  # all of it stays as it is
                progress.advance(self.steps)
            else:
                for _ in self._learning(block, layers, rounded, wanted, settings[index], chance):
                    progress.advance()
            with using(self.label):
                for name, learned in layers.items():
                    replace_module(model, f"{path}.{index}.{name}", self.pack(learned.layer, learned.codes()))
                rounded = [run_block(blocks[index], state, settings[index]) for state in rounded]
            states = wanted
        self.finish(model)
        gather(model)
        return variant.derive(self, model, notes)

    def _learning(
        self,
        block: nn.Module,
        layers: "dict[str, _Learned]",
        inputs: list[Tensor],
        wanted: list[Tensor],
        settings: dict[str, Any],
        chance: torch.Generator,
    ) -> Iterator[None]:
        """Step after step; the roundings with the least error are kept."""
        least, rate = float("inf"), 1 / self.steps
        for step in range(self.steps):
            batch = int(torch.randint(len(inputs), (), generator=chance))
            with using(self.label, learning=True):
                weights = {f"{name}.weight": learned.weight() for name, learned in layers.items()}
                found = functional_call(
                    _Block(block), {f"block.{name}": each for name, each in weights.items()}, (inputs[batch], settings)
                )
                loss = (found.float() - wanted[batch].float()).square().mean()
                if float(loss.detach()) < least:
                    least = float(loss.detach())
                    for learned in layers.values():
                        learned.keep()
                loss.backward()
            for learned in layers.values():
                learned.move(rate * (1 - step / self.steps))
            yield


class _Block(nn.Module):
    """A block that gives its hidden states alone."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: Tensor, settings: dict[str, Any]) -> Tensor:
        return run_block(self.block, state, settings)


class _Learned:
    """A layer whose rounding is learned.

    Reference: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent", 2024, section 3.

    Args:
        layer: dense.
        step: of which bits and groups.
    """

    def __init__(self, layer: nn.Module, step: SignRound) -> None:
        self.layer, self._step = layer, step
        self._turned, self._dtype = isinstance(layer, Conv1D), dense_weight(layer).dtype
        self._weight = in_groups(dense_weight(layer).float(), step.group_size)  # (out, groups, group)
        self._low = self._weight.amin(dim=-1).clamp(max=0)
        self._high = self._weight.amax(dim=-1).clamp(min=0)
        self._up = torch.zeros_like(self._weight, requires_grad=True)  # from -0.5, for down, to 0.5
        self._ends = [torch.ones_like(self._low, requires_grad=True) for _ in range(2)]
        self.keep()

    def weight(self) -> Tensor:
        """As it would be read, differentiable."""
        codes, grid = self._rounded(self._up, *self._ends)
        grouped = (codes - grid.zero.unsqueeze(-1)) * grid.scale.unsqueeze(-1)
        whole = grouped.flatten(1)[:, : dense_weight(self.layer).shape[1]].to(self._dtype)
        return whole.t() if self._turned else whole

    def codes(self) -> Codes:
        """The roundings that were kept."""
        codes, grid = self._rounded(*self._kept)
        shape = dense_weight(self.layer).shape
        return Codes(codes.to(torch.uint8).flatten(1)[:, : shape[1]].contiguous(), grid)

    def keep(self) -> None:
        """Remember the roundings as they are."""
        self._kept = [each.detach().clone() for each in (self._up, *self._ends)]

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """One step against the sign of the gradient, which is forgotten."""
        for each, (least, most) in zip((self._up, *self._ends), ((-0.5, 0.5), (0.0, 1.0), (0.0, 1.0)), strict=True):
            if each.grad is not None:
                each.sub_(rate * each.grad.sign()).clamp_(least, most)
                each.grad = None

    def _rounded(self, up: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Grid]:
        """Codes ``(out, groups, group)`` and their grid."""
        step, top = self._step, 2**self._step.bits - 1
        lowest, highest = self._low * low, self._high * high
        if step.symmetric:
            middle = 2.0 ** (step.bits - 1)
            scale = _passed(torch.maximum(highest, -lowest) / (middle - 0.5), stored_scale)
            zero = torch.full_like(scale, middle)
        else:
            scale = _passed((highest - lowest) / top, stored_scale)
            zero = _passed(-lowest / scale, torch.round).clamp(0, top)
        codes = _passed(self._weight / scale.unsqueeze(-1) + up, torch.round) + zero.unsqueeze(-1)
        return codes.clamp(0, top), Grid(scale, zero)


def _passed(value: Tensor, rounding: Any) -> Tensor:
    """Rounded, with the gradient of what it was (Bengio et al., 2013)."""
    rounded: Tensor = value + (rounding(value) - value).detach()
    return rounded


def _fits(size: int, windows: list[list[int]]) -> bool:
    return len(windows) % size == 0 and size * len(windows[0]) <= BATCH_TOKENS
