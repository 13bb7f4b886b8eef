"""The T×T similarity as a heat map, ordered by group, or by likeness with a dendrogram above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from merit.base.words import decimal, short_labels
from merit.report.drawing import DataTable, Figure, Search, View, group_colour, group_symbol
from merit.report.evidence import Grouping, group_label
from merit.report.page import plotly_text, visible

Matrix = NDArray[np.float64]
_SCALE = [[0, "--fight-2"], [0.25, "--fight-1"], [0.5, "--neutral"], [0.75, "--agree-1"], [1, "--agree-2"]]
_COSINE = "Cosine"
_READABLE = 60  # datasets; beyond, names on the axes would overlap


def heatmap_figure(names: Sequence[str], cosines: Matrix, split_sees: Matrix | None, grouping: Grouping) -> Figure:
    """Cosines between the datasets' gradients; `split_sees` is the centred matrix that the axes come from."""
    order = [list(names).index(name) for name in grouping.names]
    raw = _ordered(cosines, order)
    size = len(order)
    labels = [plotly_text(label) for label in short_labels(grouping.names, 26)]
    views = [(_COSINE, raw)]
    if split_sees is not None:
        views.insert(0, ("Centred: what the split sees", _ordered(split_sees, order)))
    first = views[0][1]
    looks = [View(label, {key: [value] for key, value in _colours(matrix).items()}) for label, matrix in views]
    tree = grow_tree(cosines[np.ix_(order, order)])
    if tree is not None:
        looks.append(_by_likeness(tree, raw, labels))
    trace = {
        "type": "heatmap",
        **_colours(first),
        "colorscale": _SCALE,
        "xgap": 1 if size <= _READABLE else 0,
        "ygap": 1 if size <= _READABLE else 0,
        "hoverongaps": False,
        "hovertemplate": "%{y}<br>%{x}<br><b>%{z:.3f}</b><extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0, "len": 0.9, "tickformat": ".2f"},
    }
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(size)),
        "ticktext": labels,
        "showgrid": False,
        "zeroline": False,
    }
    readable = size <= _READABLE
    layout = {
        "xaxis": {**ticks, "showticklabels": readable, "tickangle": -50, "ticks": "", "constrain": "domain"},
        "yaxis": {**ticks, "showticklabels": readable, "autorange": "reversed", "ticks": ""},
        "shapes": _boxes(grouping),
        "annotations": _names(grouping),
        "margin": {"t": 30, "r": 10},
    }
    return Figure(
        id="similarity",
        title="Similarity of the datasets' gradients",
        alt=_alt(size, grouping),
        traces=[trace, *(_tree_traces(tree, grouping, len(looks) - 1) if tree else [])],
        layout=layout,
        table=_table(grouping.names, raw),
        height=max(340, min(1100, 150 + size * 26)),
        narrow={
            "annotations": _names(grouping, short=True),
            "xaxis.showticklabels": size <= 16,
            "yaxis.tickfont.size": 9,
            "xaxis.tickfont.size": 9,
            "height": 430,
        },
        views=looks if len(looks) > 1 else [],
        search=Search(
            names=[visible(name) for name in grouping.names],
            groups=["" if (k := grouping.group[name]) is None else group_label(k) for name in grouping.names],
            view=next(i for i, (label, _) in enumerate(views) if label == _COSINE),
        ),
    )


def _by_likeness(tree: Tree, cosines: Matrix, labels: Sequence[str]) -> View:
    """Rows and columns as the tree has its leaves; the groups' frames make no sense there."""
    ticks = [labels[leaf] for leaf in tree.order]
    return View(
        "By likeness, with its tree",
        {key: [value] for key, value in _colours(cosines[np.ix_(tree.order, tree.order)]).items()},
        relayout={
            "xaxis.ticktext": ticks,
            "yaxis.ticktext": ticks,
            "shapes": [],
            "annotations": [],
            "yaxis.domain": [0, 0.8],
            "yaxis2": {
                "domain": [0.82, 1],
                "rangemode": "tozero",
                "showgrid": False,
                "zeroline": False,
                "title": {"text": "1 − cosine", "font": {"size": 11, "color": "--muted"}},
                "fixedrange": True,
            },
        },
        order=tree.order,
    )


def _tree_traces(tree: Tree, grouping: Grouping, view: int) -> list[dict[str, Any]]:
    """The branches, and below them a mark a dataset in the colour and shape of its group."""
    common = {"type": "scatter", "yaxis": "y2", "hoverinfo": "skip", "meta": {"view": view}, "cliponaxis": False}
    groups = [grouping.group[grouping.names[leaf]] for leaf in tree.order]
    return [
        {**common, "mode": "lines", "x": tree.x, "y": tree.y, "line": {"color": "--muted", "width": 1.3}},
        {
            **common,
            "mode": "markers",
            "x": list(range(len(groups))),
            "y": [0] * len(groups),
            "marker": {
                "size": 8,
                "color": ["--muted" if k is None else group_colour(k) for k in groups],
                "symbol": ["circle" if k is None else group_symbol(k) for k in groups],
            },
        },
    ]


def _ordered(matrix: Matrix, order: list[int]) -> Matrix:
    result = matrix[np.ix_(order, order)].copy()
    np.fill_diagonal(result, np.nan)  # a dataset agrees with itself; drawn, it would set the scale
    return result


def _colours(matrix: Matrix) -> dict[str, Any]:
    limit = float(np.nanmax(np.abs(matrix), initial=0.0)) or 1.0
    values = [[None if np.isnan(cell) else round(float(cell), 3) for cell in row] for row in matrix]
    return {"z": values, "zmin": -limit, "zmax": limit}


def _boxes(grouping: Grouping) -> list[dict[str, Any]]:
    return [
        {
            "type": "rect",
            "x0": first - 0.5,
            "x1": last + 0.5,
            "y0": first - 0.5,
            "y1": last + 0.5,
            "line": {"color": group_colour(k), "width": 3},
        }
        for k, first, last in grouping.spans
    ]


def _names(grouping: Grouping, *, short: bool = False) -> list[dict[str, Any]]:
    """The groups' names above their columns: colour alone must not carry them."""
    return [
        {
            "x": (first + last) / 2,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "text": str(k) if short else group_label(k),
            "showarrow": False,
            "font": {"color": group_colour(k), "size": 12},
        }
        for k, first, last in grouping.spans
        if grouping.count <= 8
    ]


def _table(names: Sequence[str], matrix: Matrix) -> DataTable:
    rows = [
        [name, *(decimal(None if np.isnan(cell) else float(cell)) for cell in row)]
        for name, row in zip(names, matrix, strict=True)
    ]
    return DataTable(["cosine", *names], rows)


def _alt(size: int, grouping: Grouping) -> str:
    order = f", ordered by the {grouping.count} groups, each framed on the diagonal" if grouping.count else ""
    return f"Heat map of {size} by {size} cosines between mean gradients{order}. Blue pairs agree, orange pairs fight."


@dataclass(frozen=True)
class Tree:
    """Leaves from left to right, as indices into the matrix; branches as polylines over their positions 0, 1, 2 …"""

    order: list[int]
    x: list[float | None]  # None lifts the pen
    y: list[float | None]  # 1 − cosine at which two clusters join


def grow_tree(cosines: NDArray[np.float64]) -> Tree | None:
    """None where there is nothing to join, or a cosine is no number."""
    if len(cosines) < 3 or not np.isfinite(cosines).all():
        return None
    distances = np.clip(1 - (cosines + cosines.T) / 2, 0, 2)
    np.fill_diagonal(distances, 0)
    found: dict[str, Any] = dendrogram(linkage(squareform(distances, checks=False), "average"), no_plot=True)
    x: list[float | None] = []
    y: list[float | None] = []
    for across, up in zip(found["icoord"], found["dcoord"], strict=True):
        x += [*((float(value) - 5) / 10 for value in across), None]  # scipy puts leaves at 5, 15, 25 …
        y += [*(round(float(value), 4) for value in up), None]
    return Tree([int(leaf) for leaf in found["leaves"]], x, y)
