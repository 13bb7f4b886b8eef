"""Chapter 2: which datasets pull in different directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merit.conflict.axes import centred
from merit.conflict.explain import Explanation
from merit.conflict.records import AxesResult
from merit.report.evidence import Evidence
from merit.report.figure import Figure, Section, missing
from merit.report.figures.bars import reliability_figure
from merit.report.figures.conflict import heatmap_figure, layers_figure
from merit.report.figures.split import eigenvalue_figure, plane_figure
from merit.report.grouping import find_grouping
from merit.report.words import code, compact, decimal, plural, series

ID, TITLE = "conflict", "What conflicts"

_PAIRS = 3
_ENDS = 4


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
        sees = centred(matrix) if axes is None or axes.centred else None
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
        "centred": axes.centred if axes else True,
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
        word = "centred " if axes.centred else ""
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
