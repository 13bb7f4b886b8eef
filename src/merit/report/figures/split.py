"""The datasets on the first two conflict axes, with the cuts; and how much each axis holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from merit.conflict.records import AxesResult
from merit.report.figure import DataTable, Figure
from merit.report.figures.style import group_colour, group_symbol, place_labels
from merit.report.grouping import Grouping, group_label
from merit.report.page import plotly_text
from merit.report.words import count, decimal, shorten
from merit.split.partition import Cut

_LABELLED = 40  # datasets; beyond, names in the plane would cover each other
_BARS = 30


def plane_figure(axes: AxesResult, grouping: Grouping, tokens: Mapping[str, int], cuts: Sequence[Cut]) -> Figure:
    """PC1 × PC2, marker area by supervised tokens."""
    place = {name: (row[0], row[1] if len(row) > 1 else 0.0) for name, row in zip(axes.names, axes.scores, strict=True)}
    largest = max((tokens.get(name, 0) for name in place), default=0) or 1
    names = [shorten(name, 22) for name in grouping.names]
    label = dict(zip(grouping.names, names, strict=True))
    spot = dict(zip(grouping.names, place_labels([place[name] for name in grouping.names], names), strict=True))
    groups: list[int | None] = [*dict.fromkeys(grouping.group[name] for name in grouping.names)]
    traces = []
    for k in groups:
        members = [name for name in grouping.names if grouping.group[name] == k]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text" if len(place) <= _LABELLED else "markers",
                "name": "datasets" if k is None else group_label(k),
                "x": [place[name][0] for name in members],
                "y": [place[name][1] for name in members],
                "text": [plotly_text(label[name]) for name in members],
                "textposition": [spot[name] for name in members],
                "textfont": {"size": 11},
                "cliponaxis": False,
                "customdata": [[plotly_text(shorten(name, 60)), count(tokens.get(name, 0))] for name in members],
                "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]} supervised tokens"
                "<br>PC1 %{x:.3f}, PC2 %{y:.3f}<extra></extra>",
                "marker": {
                    "color": "--accent" if k is None else group_colour(k),
                    "symbol": group_symbol(k or 0),
                    "size": [8 + 16 * math.sqrt(tokens.get(name, 0) / largest) for name in members],
                    "line": {"width": 1, "color": "--surface"},
                },
            }
        )
    return Figure(
        id="plane",
        title="The datasets on the two strongest conflict axes",
        alt=f"Scatter plot of {len(place)} datasets on the first two principal axes of the similarity matrix, "
        "marked by group, larger where a dataset has more tokens. Dashed lines are the cuts.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "PC1"}, "zeroline": True, "range": _padded([x for x, _ in place.values()])},
            "yaxis": {"title": {"text": "PC2"}, "zeroline": True},
            "shapes": _cut_lines(cuts, place),
            "showlegend": grouping.count > 1,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        },
        table=DataTable(
            ["dataset", "group", "PC1", "PC2", "supervised tokens"],
            [
                [name, _group(grouping.group[name]), *map(decimal, place[name]), count(tokens.get(name, 0))]
                for name in grouping.names
            ],
        ),
        height=480,
        narrow={"height": 420, "margin.r": 60},
    )


def eigenvalue_figure(axes: AxesResult, used: int) -> Figure:
    """The eigenvalues in order; the axes that were cut along are filled."""
    shown = axes.eigenvalues[:_BARS]
    positive = sum(max(value, 0.0) for value in axes.eigenvalues) or 1.0
    shares = [max(value, 0.0) / positive for value in shown]
    trace = {
        "type": "bar",
        "x": list(range(1, len(shown) + 1)),
        "y": shown,
        "customdata": [f"{share:.1%}" for share in shares],
        "marker": {"color": ["--accent" if i < used else "--faint" for i in range(len(shown))]},
        "hovertemplate": "PC%{x}: eigenvalue %{y:.3f}, %{customdata} of all<extra></extra>",
    }
    return Figure(
        id="eigenvalues",
        title="How much conflict each axis holds",
        alt=f"Bar chart of the {len(shown)} largest eigenvalues of the similarity matrix in descending order; the "
        f"first {used} are the axes in use."
        if used
        else "Bar chart of the eigenvalues in descending order.",
        traces=[trace],
        layout={
            "xaxis": {"title": {"text": "principal axis"}, "dtick": 1 if len(shown) <= 16 else 5, "showgrid": False},
            "yaxis": {"title": {"text": "eigenvalue"}},
            "bargap": 0.35,
        },
        table=DataTable(
            ["axis", "eigenvalue", "share"],
            [[f"PC{i + 1}", decimal(value), f"{shares[i]:.1%}"] for i, value in enumerate(shown)],
        ),
        height=300,
    )


def _padded(values: Sequence[float]) -> list[float]:
    """The range of an axis, with room for the names of the outermost points."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    pad = (high - low) * 0.15 or 1.0
    return [low - pad, high + pad]


def _group(k: int | None) -> str:
    return "–" if k is None else group_label(k)


def _cut_lines(cuts: Sequence[Cut], place: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Cuts on PC1 run from edge to edge of the group they cut; cuts on PC2 stop at the cut on PC1 before them."""
    lines = []
    firsts = [cut for cut in cuts if cut.axis == 0]
    for cut in cuts:
        if cut.axis == 0:
            span: dict[str, Any] = {"x0": cut.threshold, "x1": cut.threshold, "yref": "paper", "y0": 0, "y1": 1}
        elif cut.axis == 1:
            xs = [place[name][0] for name in cut.group if name in place]
            low, high = 0.0, 1.0
            span = {"xref": "paper", "x0": low, "x1": high, "y0": cut.threshold, "y1": cut.threshold}
            if firsts and xs:
                edge = _padded([x for x, _ in place.values()])
                left = max(xs) <= firsts[0].threshold
                span |= {
                    "xref": "x",
                    "x0": edge[0] if left else firsts[0].threshold,
                    "x1": firsts[0].threshold if left else edge[1],
                }
        else:
            continue
        lines.append(
            {"type": "line", "layer": "below", "line": {"color": "--muted", "width": 1, "dash": "dash"}, **span}
        )
    return lines


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
