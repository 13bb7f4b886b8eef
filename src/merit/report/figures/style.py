"""Colours, as names of CSS variables, and what tells things apart without colour: symbols and dashes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merit.report.page import plotly_text

_GROUPS = 8
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def group_colour(k: int) -> str:
    """The colour of group k. With more than eight groups, colours come again with other symbols."""
    return f"--group-{k % _GROUPS}"


def group_symbol(k: int) -> str:
    """The marker of group k."""
    return _SYMBOLS[(k + k // _GROUPS) % len(_SYMBOLS)]


def method_colour(name: str, others: Sequence[str]) -> str:
    """θ0 is grey, the main method has the accent, the baselines a colour each."""
    if name == "base":
        return "--muted"
    if name == "merit":
        return "--accent"
    return f"--method-{others.index(name) % 5}" if name in others else "--muted"


def method_symbol(name: str, others: Sequence[str]) -> str:
    """The marker of a method."""
    if name == "base":
        return "x-thin-open"
    return "star" if name == "merit" else _SYMBOLS[(others.index(name) if name in others else 0) % len(_SYMBOLS)]


def dash(index: int) -> str:
    """A line style."""
    return _DASHES[index % len(_DASHES)]


LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def row_axis(labels: Sequence[str], *, grid: bool = False) -> dict[str, Any]:
    """A vertical axis with a row for each label, the first on top; row k is at y = k."""
    return {**_ticks(labels), "range": [len(labels) - 0.5, -0.5], "showgrid": grid, "zeroline": False}


def column_axis(labels: Sequence[str], *, grid: bool = False) -> dict[str, Any]:
    """A horizontal axis with a column for each label; column k is at x = k."""
    return {**_ticks(labels), "showgrid": grid}


def limit_line(x: float, colour: str) -> dict[str, Any]:
    """A dashed vertical line over the whole height."""
    line = {"color": colour, "width": 1.5, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def _ticks(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": [plotly_text(label) for label in labels],
    }


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
