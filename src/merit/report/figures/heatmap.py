"""The T×T similarity as a heat map, ordered by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.report.figure import DataTable, Figure, View
from merit.report.figures.palette import group_colour
from merit.report.grouping import Grouping, group_label
from merit.report.safe import plotly_text
from merit.report.words import decimal, short_labels

Matrix = NDArray[np.float64]

_SCALE = [[0, "--fight-2"], [0.25, "--fight-1"], [0.5, "--neutral"], [0.75, "--agree-1"], [1, "--agree-2"]]
_READABLE = 60  # datasets; beyond, names on the axes would overlap


def heatmap_figure(names: Sequence[str], cosines: Matrix, split_sees: Matrix | None, grouping: Grouping) -> Figure:
    """Cosines between the datasets' gradients; `split_sees` is the centred matrix that the axes come from."""
    order = [list(names).index(name) for name in grouping.names]
    raw = _ordered(cosines, order)
    size = len(order)
    labels = [plotly_text(label) for label in short_labels(grouping.names, 26)]
    views = [("Cosine", raw)]
    if split_sees is not None:
        views.insert(0, ("Centred: what the split sees", _ordered(split_sees, order)))
    first = views[0][1]
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
        traces=[trace],
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
        views=[View(label, {key: [value] for key, value in _colours(matrix).items()}) for label, matrix in views]
        if len(views) > 1
        else [],
    )


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
