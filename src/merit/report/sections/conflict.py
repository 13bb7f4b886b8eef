"""Chapter 2: which datasets pull in different directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.base.words import code, compact, count, decimal, plural, series, short_labels, shorten
from merit.conflict.axes import AxesResult, centre_matrix
from merit.conflict.explain import Carrier, Explanation
from merit.conflict.similarity import ConflictResult
from merit.report.drawing import (
    DataTable,
    Figure,
    column_axis,
    group_colour,
    group_symbol,
    limit_line,
    place_labels,
    row_axis,
)
from merit.report.evidence import Evidence, Grouping, find_grouping, group_label
from merit.report.page import Section, missing, plotly_text
from merit.report.sections.heat_map import heatmap_figure
from merit.split.partition import Cut

ID, TITLE = "conflict", "What conflicts"

_PAIRS = 3
_ENDS = 4
_LAYER_LABELS = 16  # more run into each other on a phone


def conflict(evidence: Evidence) -> Section:
    """What conflicts."""
    found, axes, matrix = evidence.conflict, evidence.axes, evidence.similarity
    if found is None and axes is None:
        return missing(ID, TITLE, "No conflict has been measured in this run yet.")
    names = found.names if found else axes.names if axes else []
    grouping = find_grouping(evidence, names)
    tokens = evidence.mixture.planned_tokens if evidence.mixture else {}
    cuts = evidence.main.partition.cuts if evidence.main.partition else []
    figures: list[Figure] = []
    if matrix is not None and len(names) > 1:
        sees = centre_matrix(matrix, axes.centre) if axes is not None and axes.centre != "none" else None
        figures.append(heatmap_figure(names, matrix, sees, grouping))
    if axes is not None and axes.names == list(names) and axes.scores:
        figures.append(plane_figure(axes, grouping, tokens, cuts))
        figures.append(eigenvalue_figure(axes, len({cut.axis for cut in cuts})))
    if found is not None and any(value is not None for value in found.reliability):
        figures.append(reliability_figure(found, grouping))
    if evidence.explanation and evidence.explanation.layers:
        figures.append(layers_figure(evidence.explanation))
    context = {
        "sentences": _sentences(evidence),
        "carriers": _carriers(evidence.explanation),
        "ends": _ends(axes) if axes else [],
        "twins": _twins(evidence.explanation),
        "fighting": _pairs(names, matrix, found.noise if found else None, lowest=True),
        "agreeing": _pairs(names, matrix, found.noise if found else None, lowest=False),
        "opposed": matrix is not None and bool((matrix[~np.eye(len(matrix), dtype=bool)] < 0).any()),
        "figures": {figure.id: figure for figure in figures},
        "notes": found.notes if found else [],
        "centred": axes is None or axes.centre != "none",
    }
    return Section(ID, TITLE, "conflict", context)


def _sentences(evidence: Evidence) -> list[str]:
    found, axes, matrix = evidence.conflict, evidence.axes, evidence.similarity
    lines = []
    if found is not None:
        least = min(found.examples, default=0)
        lines.append(
            f"At θ0, before any tuning, the mean gradient of each of {plural(len(found.names), 'dataset')} was "
            f"measured on a calibration set ({plural(least, 'example')} in the smallest), over "
            f"{compact(found.parameters)} trainable parameters, and kept as "
            f"{compact(found.sketch_numbers)} numbers ({found.sketch})."
        )
    if matrix is not None and len(matrix) > 1:
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        below = int((off < 0).sum()) // 2
        lines.append(
            f"The cosines between them run from {decimal(float(off.min()), 2)} to {decimal(float(off.max()), 2)}, "
            f"median {decimal(float(np.median(off)), 2)}; {below} of {plural(len(off) // 2, 'pair')} "
            f"{'is' if below == 1 else 'are'} below zero."
        )
    if axes is not None and axes.eigenvalues:
        total = sum(max(value, 0.0) for value in axes.eigenvalues) or 1.0
        cuts = evidence.main.partition.cuts if evidence.main.partition else []
        kept = len({cut.axis for cut in cuts}) or (len(axes.scores[0]) if axes.scores else 0)
        share = sum(max(value, 0.0) for value in axes.eigenvalues[:kept]) / total
        word = "centred " if axes.centre != "none" else ""
        lines.append(
            f"The first {'axis' if kept == 1 else f'{kept} axes'} of the {word}matrix "
            f"{'holds' if kept == 1 else 'hold'} "
            f"{share:.0%} of what differs."
        )
    return lines


def _pairs(
    names: Sequence[str], matrix: NDArray[np.float64] | None, noise: Sequence[float | None] | None, *, lowest: bool
) -> list[str]:
    """The pairs at one end of the scale, in words, with the standard error of the cosine where it is known."""
    if matrix is None or len(names) < 2:
        return []
    rows, columns = np.triu_indices(len(names), 1)
    values = matrix[rows, columns]
    order = np.argsort(values if lowest else -values, kind="stable")[:_PAIRS]
    lines = []
    for index in order:
        i, j = int(rows[index]), int(columns[index])
        error = ""
        if noise is not None and noise[i] is not None and noise[j] is not None:
            error = f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{math.hypot(noise[i] or 0.0, noise[j] or 0.0):.2f}"
        lines.append(
            f"{code(names[i])} and {code(names[j])}: cosine\N{NO-BREAK SPACE}{decimal(float(values[index]), 2)}{error}"
        )
    return lines


def _ends(axes: AxesResult) -> list[tuple[str, list[str], list[str]]]:
    """Each axis in use, its share of the conflict, and who stands farthest out on either side."""
    total = sum(max(value, 0.0) for value in axes.eigenvalues) or 1.0
    found = []
    for axis in range(len(axes.scores[0]) if axes.scores else 0):
        scores = [row[axis] for row in axes.scores]
        order = sorted(range(len(scores)), key=lambda i: (scores[i], axes.names[i]))
        low = [axes.names[i] for i in order if scores[i] < 0][:_ENDS]
        high = [axes.names[i] for i in reversed(order) if scores[i] > 0][:_ENDS]
        found.append((f"PC{axis + 1}, {max(axes.eigenvalues[axis], 0.0) / total:.0%} of what differs", low, high))
    return found


def _twins(found: Explanation | None) -> str | None:
    """Pairs whose gradients are nearly the same: splitting them apart would gain nothing."""
    if found is None or not found.duplicates:
        return None
    pairs = [f"{code(pair.first)} and {code(pair.second)} ({decimal(pair.cosine, 2)})" for pair in found.duplicates]
    return f"Nearly the same gradient: {series(pairs, limit=6)}. They may be one dataset under two names."


def _carriers(found: Explanation | None) -> str | None:
    """Which kinds of module and layers carry most of the conflict."""
    if found is None:
        return None
    kinds = series([f"{code(kind.name)} ({kind.share:.0%})" for kind in found.kinds[:_PAIRS]])
    layers = sorted(found.layers, key=lambda layer: -layer.share)[:_PAIRS]
    return (
        f"By kind of module, {kinds} carry most of it; by depth, "
        + series([f"{layer.name} ({layer.share:.0%})" for layer in layers])
        + "."
    )


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


def layers_figure(explanation: Explanation) -> Figure:
    """Each layer's share of the whole conflict; the table holds its share of every axis, and the kinds of module."""
    layers = explanation.layers
    largest = max(layers, key=lambda layer: layer.share)
    axes = len(layers[0].axes)
    every = math.ceil(len(layers) / _LAYER_LABELS)
    return Figure(
        id="layers",
        title="Where in the model the conflict is",
        alt=f"Bar chart of the share of the conflict in {len(layers)} parts of the model; the largest is "
        f"{largest.name} with {largest.share:.1%}.",
        traces=[
            {
                "type": "bar",
                "x": list(range(len(layers))),
                "y": [layer.share for layer in layers],
                "text": [plotly_text(layer.name) for layer in layers],
                "textposition": "none",
                "marker": {"color": "--accent"},
                "hovertemplate": "%{text}: %{y:.1%}<extra></extra>",
            }
        ],
        layout={
            "xaxis": {
                **column_axis(
                    [_short(layers[i].name) if (len(layers) - 1 - i) % every == 0 else "" for i in range(len(layers))]
                ),
                "title": {"text": "layer" if layers[-1].name.startswith("layer ") else "layer (rest: outside them)"},
            },
            "yaxis": {"tickformat": ".0%", "title": {"text": "share of the conflict"}, "rangemode": "tozero"},
            "bargap": 0.25,
        },
        table=DataTable(
            ["part", "numbers in the sketch", "share of the conflict", *(f"share of PC{k + 1}" for k in range(axes))],
            [_row(carrier) for carriers in (layers, explanation.kinds) for carrier in carriers],
        ),
        height=300,
    )


def _short(name: str) -> str:
    """For under a narrow bar."""
    return name.removeprefix("layer ") if name.startswith("layer ") else "rest"


def _row(carrier: Carrier) -> Sequence[str]:
    return [carrier.name, count(carrier.numbers), *(f"{share:.1%}" for share in (carrier.share, *carrier.axes))]


_READABLE = 30  # names on an axis
UNRELIABLE = 0.5  # as conflict.measure warns: below it, most of a mean gradient is noise


def reliability_figure(conflict: ConflictResult, grouping: Grouping) -> Figure:
    """Split-half reliability of every dataset's mean gradient, lowest on top."""
    position = {name: i for i, name in enumerate(conflict.names)}
    known = [name for name in grouping.names if conflict.reliability[position[name]] is not None]
    order = sorted(known, key=lambda name: conflict.reliability[position[name]] or 0.0)
    values = [conflict.reliability[position[name]] or 0.0 for name in order]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": list(range(len(order))),
        "marker": {"color": ["--fight-2" if value < UNRELIABLE else "--accent" for value in values]},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    return Figure(
        id="reliability",
        title="How far each gradient can be trusted",
        alt=f"Bar chart of the split-half reliability of {len(order)} gradients, from "
        f"{decimal(min(values), 2)} to {decimal(max(values), 2)}; below {UNRELIABLE} most of a gradient is noise.",
        traces=[trace],
        layout={
            "xaxis": {"range": [0, 1], "title": {"text": "split-half reliability"}},
            "yaxis": {**row_axis(short_labels(order, 26)), "showticklabels": len(order) <= _READABLE},
            "shapes": [limit_line(UNRELIABLE, "--muted")],
            "bargap": 0.3,
        },
        table=DataTable(
            ["dataset", "reliability", "calibration examples", "supervised tokens", "gradient norm", "loss at θ0"],
            [
                [
                    name,
                    decimal(conflict.reliability[i]),
                    count(conflict.examples[i]),
                    count(conflict.tokens[i]),
                    f"{conflict.norms[i]:.4g}",
                    decimal(conflict.losses[i]),
                ]
                for name in grouping.names
                for i in [position[name]]
            ],
        ),
        height=max(240, min(560, 90 + 22 * len(order))),
    )
