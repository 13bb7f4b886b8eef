"""Where a point's name goes in a scatter plot, so that names cover neither each other nor other points."""

from __future__ import annotations

from collections.abc import Sequence

# plotly's name of a place → the label's centre, in label widths and heights from the point
_PLACES = {
    "top center": (0.0, 1.0),
    "bottom center": (0.0, -1.0),
    "middle right": (0.5, 0.0),
    "middle left": (-0.5, 0.0),
    "top right": (0.5, 0.8),
    "top left": (-0.5, 0.8),
    "bottom right": (0.5, -0.8),
    "bottom left": (-0.5, -0.8),
}
_CHAR, _LINE, _MARKER = 6.2, 14.0, 18.0  # pixels, near enough


def place_labels(
    points: Sequence[tuple[float, float]], labels: Sequence[str], *, size: tuple[float, float] = (700.0, 380.0)
) -> list[str]:
    """plotly's `textposition` of each label: the first place in which it covers least, taken point after point.

    `size` is what the points span on a wide screen, in pixels.
    """
    if not points:
        return []
    pixels = _pixels(points, size)
    taken = [(x, y, _MARKER, _MARKER) for x, y in pixels]
    chosen = []
    for (x, y), label in zip(pixels, labels, strict=True):
        width = _CHAR * len(label)
        boxes = {
            name: (x + dx * (width + _MARKER), y + dy * (_LINE + _MARKER) / 2, width, _LINE)
            for name, (dx, dy) in _PLACES.items()
        }
        best = min(boxes, key=lambda name: sum(_overlap(boxes[name], other) for other in taken))
        taken.append(boxes[best])
        chosen.append(best)
    return chosen


def _pixels(points: Sequence[tuple[float, float]], size: tuple[float, float]) -> list[tuple[float, float]]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    wide, high = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    return [((x - min(xs)) / wide * size[0], (y - min(ys)) / high * size[1]) for x, y in points]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    wide = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    high = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    return max(wide, 0.0) * max(high, 0.0)
