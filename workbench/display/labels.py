"""Where the names of points stand, so that near ones do not hide each other."""

from collections.abc import Sequence

SIDES = {"top center": (0, 1), "bottom center": (0, -1), "middle right": (1, 0), "middle left": (-1, 0)}
LETTER, LINE, GAP = 7, 17, 4  # pixels: about what Plotly's usual font takes
Box = tuple[float, float, float, float]  # left, right, bottom, top


def sides(points: Sequence[tuple[float, float]], names: Sequence[str], radii: Sequence[float]) -> list[str]:
    """Plotly's `textposition` of every name: above its point, or where it meets fewer points and names before it.

    Args:
        points: middles, in pixels, about.
        names: what is written.
        radii: of the points, in pixels.
    """
    taken = [_box(x, y, 2 * radius, 2 * radius) for (x, y), radius in zip(points, radii, strict=True)]
    chosen = []
    for (x, y), name, radius in zip(points, names, radii, strict=True):
        wide = LETTER * len(name)
        tried = {
            side: _box(x + right * (radius + GAP + wide / 2), y + up * (radius + GAP + LINE / 2), wide, LINE)
            for side, (right, up) in SIDES.items()
        }
        best = min(tried, key=lambda side: sum(_meet(tried[side], each) for each in taken))
        taken.append(tried[best])
        chosen.append(best)
    return chosen


def _box(x: float, y: float, wide: float, high: float) -> Box:
    return x - wide / 2, x + wide / 2, y - high / 2, y + high / 2


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
