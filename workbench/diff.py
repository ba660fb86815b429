"""What changed between two variants: layer by layer, how far every weight matrix moved."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import InvalidInput
from workbench.packed import dense_weight, linear_layers
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

LAYER = re.compile(r"\.(\d+)\.")
OUTSIDE = "–"  # the row of modules that belong to no layer


@dataclass(frozen=True)
class Diff:
    """Relative change of every weight matrix, ``|after - before| / |before|`` in the Frobenius norm.

    Attributes:
        before: name of the first variant.
        after: name of the second.
        layers: row names.
        modules: column names.
        relative: ``(layers, modules)``; NaN where a layer has no such module.
    """

    before: str
    after: str
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    relative: np.ndarray

    def table(self) -> "pandas.DataFrame":
        """The same numbers, one row a layer and one column a module."""
        import pandas

        return pandas.DataFrame(self.relative, index=list(self.layers), columns=list(self.modules))

    def figure(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """The heat map."""
        from workbench.figures import diff_figure

        return diff_figure(self.relative, self.layers, self.modules, transparent)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.figure())  # type: ignore[no-untyped-call]


def diff(before: Variant, after: Variant) -> Diff:
    """Compare the weights of two variants of one model; packed weights are dequantized first.

    Raises:
        InvalidInput: the variants have different layers.
    """
    ours, theirs = dict(linear_layers(before.model, head=True)), dict(linear_layers(after.model, head=True))
    if ours.keys() != theirs.keys():
        raise InvalidInput(
            f"'{before.name}' and '{after.name}' have different layers and cannot be compared one by one."
        )
    cells: dict[tuple[str, str], float] = {}
    for path, layer in ours.items():
        other = theirs[path]
        if getattr(layer, "weight", None) is getattr(other, "weight", None):
            change = 0.0
        else:
            was, now = dense_weight(layer).float(), dense_weight(other).float()
            if was.shape != now.shape:
                raise InvalidInput(f"'{path}' has shape {tuple(was.shape)} before and {tuple(now.shape)} after.")
            change = float((now - was).norm() / was.norm().clamp(min=1e-12))
        found = LAYER.search(path)
        row, column = (found[1], path[found.end() :]) if found else (OUTSIDE, path)
        cells[row, column] = change
    layers = tuple(dict.fromkeys(row for row, _ in cells))
    modules = tuple(dict.fromkeys(column for _, column in cells))
    grid = np.array([[cells.get((row, column), np.nan) for column in modules] for row in layers])
    return Diff(before.name, after.name, layers, modules, grid)
