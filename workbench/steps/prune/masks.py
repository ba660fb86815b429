"""Sparsity: weights set to zero, chosen by a score."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.activations import LayerInput
from workbench.layers.step import LayerStep, SequentialStep, inverse_factor, with_weight
from workbench.models import sharing
from workbench.models.experts import as_layers, coverage, gather
from workbench.models.packed import SemiStructuredLinear, dense_weight, has_sparse_product, replace_module
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

COLUMNS = 128  # that SparseGPT chooses and corrects at a time, as its authors do
HALVINGS = 30  # of the range of sizes: finer than float32 tells apart


class _Sparsity(LayerStep):
    """Sets weights of every linear layer in the blocks to zero."""

    caveat: ClassVar[str] = (
        "not faster: a zero still costs a read; only 2:4 on a GPU with sparse tensor cores, in 16 bits, skips it"
    )
    strength: ClassVar[str] = "sparsity"
    strengths: ClassVar[tuple[float, ...]] = (0.3, 0.5, 0.7)
    sparsity: float = Field(
        default=0.5, ge=0.0, lt=1.0, description="Share of the weights set to zero; 0 changes nothing."
    )
    pattern: Literal["unstructured", "2:4", "4:8"] = Field(
        default="unstructured", description="Zeros anywhere, or exactly 2 in every 4 (4 in every 8) along a row."
    )

    def model_post_init(self, context: object) -> None:
        """Check what single fields cannot."""
        if self.pattern != "unstructured" and self.sparsity not in (0.0, 0.5):
            raise InvalidInput(f"The pattern {self.pattern} sets half of the weights to zero: set sparsity to 0.5.")

    @property
    def neutral(self) -> bool:
        """No zeros are asked for."""
        return self.sparsity == 0

    @property
    def group(self) -> int:
        """Weights in a group of the pattern; 0 without one."""
        return 0 if self.pattern == "unstructured" else int(self.pattern[-1])

    def replace(self, layer: nn.Module, inputs: LayerInput | None) -> nn.Module:
        """Zeros in place; in 2:4 they are left out where the device has a kernel that skips them."""
        sparse = super().replace(layer, inputs)
        weight = dense_weight(sparse)
        if self.pattern == "2:4" and weight.shape[1] % 8 == 0 and has_sparse_product(weight.device, weight.dtype):
            bias = sparse.bias
            assert bias is None or isinstance(bias, Tensor)
            return SemiStructuredLinear.pack(weight, bias)
        return sparse


class Magnitude(_Sparsity):
    """Sets the smallest weights to zero.

    The oldest rule: a small weight is taken to matter little. It needs no data, but ignores that inputs differ in
    size, and on language models it breaks down early. Compare it with Wanda at the same sparsity.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1506.02626"
    scope: Literal["layer", "model"] = Field(
        default="layer", description="Compare weights within each layer, or over the whole model."
    )

    def model_post_init(self, context: object) -> None:
        """Check what single fields cannot."""
        super().model_post_init(context)
        if self.scope == "model" and self.group:
            raise InvalidInput(f"The pattern {self.pattern} compares weights side by side: set scope to 'layer'.")

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Within each layer, or against one threshold for all of them."""
        if self.scope == "layer" or self.neutral:
            return super().apply(variant, task, progress)
        model, chosen = sharing.share(as_layers(variant.model)), self.layers(variant)
        notes = coverage(model, chosen, self.label)
        weights = [dense_weight(model.get_submodule(path)) for path in chosen]
        threshold = _model_threshold(weights, self.sparsity, progress)
        for path, weight in zip(chosen, weights, strict=True):
            progress.check()
            layer = with_weight(model.get_submodule(path), weight * (weight.abs() > threshold))
            replace_module(model, path, layer)
        gather(model)
        return variant.derive(self, model, notes)

    def change(self, weight: Tensor, inputs: LayerInput | None) -> Tensor:
        """Zero the smallest of one layer."""
        return weight * keep_mask(weight.abs(), self.sparsity, self.group, rows=False)


class Wanda(SequentialStep, _Sparsity):
    """Sets to zero the weights that, times the size of their input, are smallest in each output row.

    A small weight on a large input can matter more than a large weight on a small one. Takes one pass over a little
    calibration text and no training; good up to about half of the weights, with a cost that it measures itself.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.11695"

    def change(self, weight: Tensor, inputs: LayerInput | None) -> Tensor:
        """Zero the least of every row by ``|weight| * |input|``."""
        assert inputs is not None
        return weight * keep_mask(weight.abs() * inputs.norm, self.sparsity, self.group, rows=True)


class SparseGPT(SequentialStep, _Sparsity):
    """Sets weights to zero column by column and corrects the rest of each row for the error made.

    Uses the second moments of the inputs (the layer's Hessian) to choose what costs least and to make up for it. The
    most exact of the three, and the slowest; the weights that are left change too.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2301.00774"
    hessians: ClassVar[bool] = True

    def change(self, weight: Tensor, inputs: LayerInput | None) -> Tensor:
        """Zero and correct one layer."""
        assert inputs is not None
        assert inputs.hessian is not None
        return sparsegpt(weight, inputs.hessian, self.sparsity, self.group)


def keep_mask(score: Tensor, sparsity: float, group: int, rows: bool) -> Tensor:
    """True where a weight is kept.

    Args:
        score: ``(out, in)``, not negative; the lowest go.
        sparsity: share to drop, when there is no group; rounded down to whole weights.
        group: half of each run of so many columns goes; 0 for no pattern. A last, shorter run counts as if it were
            filled with weights that are kept.
        rows: compare within each row, not over the whole matrix.
    """
    if group:
        return _keep_in_groups(score, group)
    flat = score if rows else score.reshape(1, -1)
    drop = int(flat.shape[1] * sparsity)
    if not drop:
        return torch.ones_like(score, dtype=torch.bool)
    edge = _smallest(flat, drop)
    keep = flat > edge
    spare = flat.shape[1] - drop - keep.sum(dim=1, keepdim=True)
    if spare.any():  # equal scores at the edge: the last of them stay
        equal = flat == edge
        gone = equal.sum(dim=1, keepdim=True) - spare
        keep |= equal & (equal.cumsum(dim=1, dtype=torch.int32) > gone)
    return keep.view_as(score)


def _smallest(rows: Tensor, count: int) -> Tensor:
    """The largest of the `count` smallest values of each row, ``(rows, 1)``."""
    if rows.device.type == "cpu":  # numpy's selection is several times faster than torch's, but knows one thread
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = pool.map(lambda part: np.partition(part.numpy(), count - 1), rows.chunk(torch.get_num_threads()))
            return torch.from_numpy(np.concatenate([part[:, count - 1 : count] for part in parts]))
    return rows.kthvalue(count, dim=1, keepdim=True).values


def _model_threshold(weights: Sequence[Tensor], sparsity: float, progress: Progress) -> float:
    """The size at or below which that share of all weights lies, found by halving and so in no extra memory."""
    drop = int(sum(weight.numel() for weight in weights) * sparsity)
    low, high = 0.0, max(float(weight.abs().max()) for weight in weights)
    for _ in progress.track("Magnitude: comparing layers", range(HALVINGS), HALVINGS):
        middle = (low + high) / 2
        below = sum(int((weight.abs() <= middle).sum()) for weight in weights)
        low, high = (middle, high) if below < drop else (low, middle)
    return high


def _keep_in_groups(score: Tensor, group: int) -> Tensor:
    rows, columns = score.shape
    runs = nn.functional.pad(score, (0, -columns % group), value=float("inf")).view(rows, -1, group)
    lowest = runs.topk(group // 2, dim=-1, largest=False).indices
    keep = torch.ones_like(runs, dtype=torch.bool).scatter_(-1, lowest, False)
    return keep.view(rows, -1)[:, :columns]


def sparsegpt(weight: Tensor, hessian: Tensor, sparsity: float, group: int) -> Tensor:
    """Prune a weight ``(out, in)`` against the second moments ``(in, in)`` of its inputs.

    Reference: Frantar & Alistarh, SparseGPT, 2023, algorithm 1.
    """
    inverse = inverse_factor(hessian)
    # (in, out): a column of the weight is then one run of memory. A copy even where the layer stores it so.
    left = weight.t().clone(memory_format=torch.contiguous_format)
    left[hessian.diagonal() == 0] = 0  # columns without input
    for start in range(0, len(left), COLUMNS):
        stop = min(start + COLUMNS, len(left))
        part, factor = left[start:stop], inverse[start:stop, start:stop]
        diagonal = factor.diagonal().unsqueeze(1)
        cost = (part / diagonal).square()
        keep = torch.ones_like(part, dtype=torch.bool) if group else keep_mask(cost, sparsity, 0, rows=False)
        errors = torch.empty_like(part)
        for column in range(stop - start):
            if group and column % group == 0:
                run = slice(column, column + group)
                cost = (part[run] / diagonal[run]).square()
                keep[run] = keep_mask(cost.t(), 0.0, group, rows=True).t()
            torch.mul(part[column], ~keep[column], out=errors[column])
            errors[column] /= diagonal[column]
            part[column:].addr_(factor[column, column:], errors[column], alpha=-1)
            part[column] *= keep[column]  # what is left there is rounding
        left[stop:].addmm_(inverse[start:stop, stop:].t(), errors, alpha=-1)
    return left.t().contiguous()
