"""Tables and figures, and what they are drawn with: colours, symbols, axes, intervals, the forest plot.

A `Figure` holds plotly's dictionaries; a colour is the name of a CSS variable, such as "--accent", so that light and
dark share one figure. Text that comes from a file goes through `plotly_text`. The report lends this module to every
check that draws, so that no check has to import the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from merit.base.words import shorten, signed
from merit.diagnose.records import Estimate
from merit.report.page import plotly_text


@dataclass(frozen=True)
class DataTable:
    """The numbers of a figure as a table: what a screen reader reads, what is saved as CSV."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, which stand to the right."""
        return [
            all(row[i][:1] in "+−–0123456789" for row in self.rows if i < len(row)) for i in range(len(self.header))
        ]


@dataclass(frozen=True)
class View:
    """Another look at the same figure, chosen with a button. Traces that name a view in `meta` are drawn only in it."""

    label: str
    restyle: Mapping[str, Any]  # for trace 0
    relayout: Mapping[str, Any] = field(default_factory=dict)  # layout changes, as dotted paths
    order: Sequence[int] = ()  # rows and columns, as positions in the search's names; empty: as they are


@dataclass(frozen=True)
class Search:
    """Lets a reader look up one row and column of a heat map. All in drawing order of the first view."""

    names: Sequence[str]
    groups: Sequence[str]  # what each belongs to, or empty strings
    view: int  # the view whose numbers are told; its order is that of `names`


@dataclass(frozen=True)
class Figure:
    """One plotly figure. Colours are names of CSS variables ("--group-1"), so that light and dark share one figure."""

    id: str
    title: str
    alt: str  # what a person sees in it, in a sentence or two
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: DataTable
    height: int = 380
    narrow: Mapping[str, Any] = field(default_factory=dict)  # layout changes on a phone, as dotted paths
    views: Sequence[View] = ()
    search: Search | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {
            "data": list(self.traces),
            "layout": {"height": self.height, **self.layout},
            "narrow": dict(self.narrow),
            "views": [asdict(view) for view in self.views],
            "search": asdict(self.search) if self.search else None,
        }


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


def between(item: Estimate) -> str:
    """ "−0.012 to +0.034"."""
    return f"{signed(item.low)} to {signed(item.high)}"


def error_bars(reach: Sequence[float], colour: str) -> dict[str, Any]:
    """plotly's error bars of points: as far up as down."""
    return {"type": "data", "array": list(reach), "color": colour, "thickness": 1.5, "width": 4}


def whiskers(items: Sequence[Estimate], colour: str) -> dict[str, Any]:
    """The intervals of points as plotly's error bars."""
    down = [item.value - item.low for item in items]
    up = error_bars([item.high - item.value for item in items], colour)
    return {**up, "symmetric": False, "arrayminus": down}


def model_colour(label: str, others: Sequence[str] = ("joint",)) -> str:
    """The colour of a model of a diagnosis. Joint training's is no group's: branches stand beside it."""
    if label == "joint":
        return "--ink"
    return method_colour({"merge": "merit"}.get(label, label), others)


def model_symbol(label: str) -> str:
    """The marker of a model of a diagnosis."""
    if label.startswith("branch"):
        return "circle-open"
    return method_symbol({"merge": "merit"}.get(label, label), ["joint"])


LOSS_FACES = {"in_mixture": "in the mixture", "unseen": "unseen datasets", "drift": "drift from θ0"}
_FACE_SYMBOLS = ("circle", "diamond", "square")


@dataclass(frozen=True)
class Mark:
    """One difference, in nats a token."""

    row: str
    face: str  # of LOSS_FACES
    value: float
    reach: float  # half of the interval
    verdict: str


def forest_traces(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """A trace a face; the rows in the order of their first marks."""
    rows = _forest_rows(marks)
    faces = [face for face in LOSS_FACES if any(mark.face == face for mark in marks)]
    traces = []
    for index, face in enumerate(faces):
        drawn = [mark for mark in marks if mark.face == face]
        shift = (index - (len(faces) - 1) / 2) * 0.22
        colour = f"--face-{index}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": LOSS_FACES[face],
                "x": [mark.value for mark in drawn],
                "y": [rows.index(mark.row) + shift for mark in drawn],
                "error_x": error_bars([mark.reach for mark in drawn], colour),
                "marker": {"color": colour, "size": 10, "symbol": _FACE_SYMBOLS[index]},
                "customdata": [[plotly_text(mark.row), plotly_text(mark.verdict)] for mark in drawn],
                "hovertemplate": f"%{{customdata[0]}}<br>{LOSS_FACES[face]}: <b>%{{x:+.3f}}</b> nats a token, "
                "%{customdata[1]}<extra></extra>",
            }
        )
    return traces


def forest_layout(marks: Sequence[Mark], better: str) -> dict[str, Any]:
    """`better`: who gains left of zero."""
    return {
        "xaxis": {"title": {"text": f"difference in loss  (← {better} is better)"}, "zeroline": True},
        "yaxis": row_axis([shorten(row, 30) for row in _forest_rows(marks)]),
        "legend": LEGEND,
        "showlegend": True,
    }


def _forest_rows(marks: Sequence[Mark]) -> list[str]:
    return list(dict.fromkeys(mark.row for mark in marks))


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"
