"""What changed between two variants: matrix by matrix, how far it moved, its zeros, its bits and its shape."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.analysis.matching import Place, matrix_places
from workbench.core.drawn import Drawn, drawn
from workbench.core.errors import Closed, InvalidInput
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.models.experts import as_layers
from workbench.models.packed import Packed, dense_weight
from workbench.runtime.forward import memory_guard
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

VALUES = ("change", "zeros", "bits")
AT_ONCE = 1 << 20  # weights compared in one go: what fits into a processor's cache
SPREAD = 5  # root mean squares on either side of a histogram
NAN = float("nan")


@dataclass(frozen=True)
class Stored:
    """A weight matrix as one variant has it.

    Attributes:
        path: of its module in the model.
        shape: ``(out, in)``.
        zeros: share of weights that are exactly zero once unpacked.
        bits: stored bits a weight, scales included.
    """

    path: str
    shape: tuple[int, int]
    zeros: float
    bits: float


@dataclass(frozen=True)
class Matrix:
    """One weight matrix in two variants.

    Attributes:
        path: of its module in the variant that has more blocks.
        block: number of its block in that variant; None if it belongs to no block.
        module: path inside the block, or all of the path.
        change: ``|after - before| / |before|`` in the Frobenius norm; NaN where one is missing or has another shape.
        before: as the first variant has it; None where it has not.
        after: the same for the second.
    """

    path: str
    block: int | None
    module: str
    change: float
    before: Stored | None
    after: Stored | None

    def value(self, name: str) -> float:
        """`change`, or the second variant's `zeros` or `bits`; NaN where there is none."""
        if name == "change":
            return self.change
        return NAN if self.after is None else float(getattr(self.after, name))


class Distribution(NamedTuple):
    """How the nonzero weights of one matrix are distributed in each variant.

    Attributes:
        path: of the matrix.
        edges: of the bins, ``(bins + 1,)``.
        sides: for every variant its name, the shares of all weights by bin ``(bins,)``, the share of zeros, and the
            share beyond the bins.
    """

    path: str
    edges: np.ndarray
    sides: Sequence[tuple[str, np.ndarray, float, float]]


class Corner(NamedTuple):
    """Weights of one matrix in each variant.

    Attributes:
        path: of the matrix.
        sides: for every variant its name and the weights ``(rows, columns)``.
        at: row and column of the first weight.
        limit: size of weight at the ends of the colour scale.
    """

    path: str
    sides: Sequence[tuple[str, np.ndarray]]
    at: tuple[int, int]
    limit: float


@dataclass(frozen=True, eq=False)
class Diff(Drawn):
    """Two variants of one model, compared matrix by matrix.

    It holds numbers only. The variants are remembered but not kept alive; `histogram` and `closeup` read their weights.

    Attributes:
        before: name of the first variant.
        after: name of the second.
        matrices: every weight matrix, a table that embedding and head share once.
    """

    before: str
    after: str
    matrices: tuple[Matrix, ...]
    _variants: tuple["weakref.ref[Variant]", "weakref.ref[Variant]"] = field(repr=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all matrices."""
        return tuple(matrix.path for matrix in self.matrices)

    @property
    def layers(self) -> tuple[str, ...]:
        """Numbers of the blocks, those that one variant lacks included."""
        return tuple(dict.fromkeys(str(each.block) for each in self.matrices if each.block is not None))

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths inside the blocks."""
        return tuple(dict.fromkeys(each.module for each in self.matrices if each.block is not None))

    @property
    def relative(self) -> np.ndarray:
        """Relative change ``(layers, modules)``; NaN where there is none."""
        return self.pivot().to_numpy()

    def table(self) -> "pandas.DataFrame":
        """One row a matrix: how far it moved, and its zeros, bits a weight and shape before and after."""
        import pandas

        rows = []
        for each in self.matrices:
            row = {"path": each.path, "block": each.block, "module": each.module, "change": each.change}
            for name in ("zeros", "bits", "shape"):
                row |= {f"{name}_{side}": getattr(getattr(each, side), name, None) for side in ("before", "after")}
            rows.append(row)
        return pandas.DataFrame(rows).astype({"block": "Int64"})

    def pivot(self, value: str = "change") -> "pandas.DataFrame":
        """One row a block and one column a module.

        Args:
            value: "change", or of the second variant "zeros" or "bits".
        """
        import pandas

        cells = {(each.block, each.module): each.value(_known(value)) for each in self.matrices}
        rows = [[cells.get((int(layer), module), NAN) for module in self.modules] for layer in self.layers]
        return pandas.DataFrame(rows, index=list(self.layers), columns=list(self.modules))

    def figure(self, transparent: bool = False, value: str = "change") -> "plotly.graph_objects.Figure":
        """A heat map of blocks and modules, and under it what belongs to no block.

        Args:
            transparent: leave background and text colours to the page.
            value: "change", or of the second variant "zeros" or "bits".
        """
        return drawn(self, value=_known(value), transparent=transparent)

    def histogram(self, path: str, bins: int = 121, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """How the nonzero weights of one matrix are distributed before and after.

        Args:
            path: one of `paths`, or a block and a module such as ``0.mlp.down_proj``.
            bins: how many, over five root mean squares on either side; what lies beyond is counted only.
            transparent: leave background and text colours to the page.

        Raises:
            InvalidInput: there is no such matrix.
            Closed: a variant is no longer in memory.
        """
        matrix, sides = self._weights(path)
        spread = [min(float(each.abs().max()), SPREAD * float(each.square().mean().sqrt())) for _, each in sides]
        limit = max(spread) or 1.0
        edges = np.linspace(-limit, limit, max(1, bins) + 1)
        shares = [(name, *_shares(each, edges)) for name, each in sides]
        return drawn(Distribution(matrix.path, edges, shares), transparent=transparent)

    def closeup(
        self,
        path: str,
        rows: int = 48,
        columns: int = 48,
        at: tuple[int, int] = (0, 0),
        transparent: bool = False,
    ) -> "plotly.graph_objects.Figure":
        """A corner of one matrix before and after, weight by weight; zeros are blank.

        Args:
            path: one of `paths`, or a block and a module such as ``0.mlp.down_proj``.
            rows: how many output channels.
            columns: how many input channels.
            at: output and input channel of the first weight.
            transparent: leave background and text colours to the page.

        Raises:
            InvalidInput: there is no such matrix, or the corner lies outside of it.
            Closed: a variant is no longer in memory.
        """
        matrix, sides = self._weights(path)
        smallest = np.min([each.shape for _, each in sides], axis=0)
        if min(rows, columns) < 1 or min(at) < 0 or (np.array(at) >= smallest).any():
            raise InvalidInput(
                f"'{matrix.path}' has {smallest[0]} rows and {smallest[1]} columns: choose a "
                "corner inside, of at least one row and column."
            )
        corners = [(name, each[at[0] : at[0] + rows, at[1] : at[1] + columns].cpu().numpy()) for name, each in sides]
        sizes = np.concatenate([np.abs(each[each != 0]) for _, each in corners])
        limit = float(np.quantile(sizes, 0.98)) if sizes.size else 1.0
        return drawn(Corner(matrix.path, corners, at, limit), transparent=transparent)

    def _weights(self, path: str) -> tuple[Matrix, list[tuple[str, Tensor]]]:
        """A matrix, and for each variant that has it the variant's name and the weight ``(out, in)`` in float32."""
        matrix = next((each for each in self.matrices if path in (each.path, f"{each.block}.{each.module}")), None)
        if matrix is None:
            raise InvalidInput(
                f"There is no matrix '{path[:80]}' here: take one of diff.paths, such as {self.paths[0]}."
            )
        sides = []
        for name, found, stored in zip(
            (self.before, self.after), self._variants, (matrix.before, matrix.after), strict=True
        ):
            variant = found()
            if variant is None:
                raise Closed(f"'{name}' is no longer in memory: keep it in a variable to look at its weights.")
            if stored is not None:
                with memory_guard("Reading a weight"):
                    sides.append((name, dense_weight(as_layers(variant.model).get_submodule(stored.path)).float()))
        if len({weight.shape for _, weight in sides}) > 1:
            sides = [(f"{name} ({weight.shape[0]} x {weight.shape[1]})", weight) for name, weight in sides]
        return matrix, sides


@watched
def diff(before: Variant, after: Variant, progress: Progress | None = None) -> Diff:
    """Compare the weights of two variants of one model; packed weights are unpacked one at a time.

    Blocks that one variant lacks are found by their weights, or by position where no matrix kept its shape. How far
    weights move is not how far answers move: GPTQ moves them further than plain rounding, and a step that shifts scale
    from one layer into the next, such as AWQ, changes weights more than what the model computes.

    Raises:
        InvalidInput: the variants have no matrix in common.
        Closed: one of them was closed.
        Cancelled: the progress was cancelled.
    """
    progress = progress or Progress()
    ours, theirs = as_layers(before.model), as_layers(after.model)
    places = matrix_places(ours, theirs) if ours.config.model_type == theirs.config.model_type else []
    if not any(each.block is not None and each.before and each.after for each in places):
        raise InvalidInput(
            f"'{before.name}' and '{after.name}' have no matrix in common: compare two variants of one model."
        )
    with torch.no_grad(), memory_guard("Comparing weights"):
        found = [_compare(ours, theirs, each) for each in progress.track("Comparing weights", places, len(places))]
    return Diff(before.name, after.name, tuple(found), (weakref.ref(before), weakref.ref(after)))


def _compare(ours: PreTrainedModel, theirs: PreTrainedModel, place: Place) -> Matrix:
    before = None if place.before is None else ours.get_submodule(place.before)
    after = None if place.after is None else theirs.get_submodule(place.after)
    was, now = (None if each is None else dense_weight(each) for each in (before, after))
    stored = [
        None if path is None or module is None or weight is None else _stored(path, module, weight)
        for path, module, weight in ((place.before, before, was), (place.after, after, now))
    ]
    change = NAN
    if was is not None and now is not None and was.shape == now.shape:
        change = 0.0 if was.data_ptr() == now.data_ptr() else _distance(was, now.to(was.device))
    return Matrix(place.path, place.block, place.module, change, *stored)


def _stored(path: str, module: nn.Module, weight: Tensor) -> Stored:
    size = weight.element_size() * weight.numel()
    if isinstance(module, Packed):
        bias: Tensor | None = getattr(module, "bias", None)
        size = sharing.total_bytes([module]) - (0 if bias is None else bias.untyped_storage().nbytes())
    zeros = 1 - int(torch.count_nonzero(weight)) / weight.numel()
    return Stored(path, (weight.shape[0], weight.shape[1]), zeros, 8 * size / weight.numel())


def _distance(was: Tensor, now: Tensor) -> float:
    """``|now - was| / |was|``; NaN if all was zero."""
    rows = max(1, AT_ONCE // was.shape[1])
    moved = size = 0.0
    for a, b in zip(torch.split(was, rows), torch.split(now, rows), strict=True):
        moved += float((b.float() - a.float()).square_().sum())
        size += float(a.float().square().sum())
    return (moved / size) ** 0.5 if size else NAN


def _shares(weight: Tensor, edges: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Shares of the weights: by bin without the zeros, zero, and beyond the bins."""
    limit, kept = float(edges[-1]), weight[weight != 0]
    counts = torch.histc(kept, len(edges) - 1, -limit, limit).double().cpu().numpy()
    beyond = kept.numel() - counts.sum()
    return counts / weight.numel(), 1 - kept.numel() / weight.numel(), beyond / weight.numel()


def _known(value: str) -> str:
    if value not in VALUES:
        raise InvalidInput(f"'{value[:40]}' is not compared: choose one of {', '.join(VALUES)}.")
    return value
