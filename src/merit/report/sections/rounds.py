"""The loss after each round against the bytes that have moved by then, beside joint training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merit.base.words import data_size, plural, with_error
from merit.evaluate.scores import TableRow
from merit.evaluate.statistics import half_width
from merit.merge.traffic import FLOAT32, data_parallel, moved
from merit.report.drawing import DataTable, Figure, error_bars, method_colour, method_symbol
from merit.report.evidence import Evidence, MethodEvidence
from merit.report.page import plotly_text

_LABELLED = 12  # rounds of one method that are named in the figure
_DECADES = 3


@dataclass(frozen=True)
class _Point:
    """A merge, and the bytes between machines that led to it."""

    row: TableRow
    label: str
    moved: int


def rounds_of(evidence: Evidence, method: str) -> int:
    """How often the branches of a method are merged, as far as the table knows."""
    rows = evidence.table.rows if evidence.table else []
    return 1 + sum(row.kind == "round" and row.method == method for row in rows)


def moved_by(evidence: Evidence, method: MethodEvidence) -> int:
    """Bytes that a method's branches exchange over all rounds, each on a machine of its own."""
    return moved(len(method.branches), rounds_of(evidence, method.name), method.checkpoint_bytes)


def merging_seconds(evidence: Evidence, method: MethodEvidence) -> float:
    """Of all merges of a method, those between two rounds too."""
    *before, last = method.merging or [0.0]
    return sum(before[: rounds_of(evidence, method.name) - 1]) + last


def synchronised(evidence: Evidence, joint: MethodEvidence, machines: int) -> int:
    """Bytes that joint training would exchange on so many data-parallel machines; 0 where that is not known."""
    steps = sum(result.steps for result in joint.results)
    if evidence.conflict is None:
        return 0
    return data_parallel(machines, steps, FLOAT32 * evidence.conflict.parameters)


def rounds_figure(evidence: Evidence) -> Figure | None:
    """None where no method has rounds, or nothing moved."""
    machines = len(evidence.main.branches)
    lines = [line for method in evidence.methods if (line := _line(evidence, method, machines))]
    if not any(len(line) > 1 for line in lines):
        return None
    lines += _merged_again(evidence)
    points = [point for line in lines for point in line]
    below = {
        (a.label, a.moved) for a in points for b in points if a.moved == b.moved and a.row.in_mixture < b.row.in_mixture
    }
    least, most = min(point.moved for point in points), max(point.moved for point in points)
    return Figure(
        id="rounds",
        title="Loss in the mixture against bytes between machines",
        alt=f"Line chart of the loss in the mixture after each round, {plural(len(points), 'model')}, over the bytes "
        f"moved between {machines} machines until then, {data_size(least)} to {data_size(most)} on a logarithmic "
        "scale, with 95% intervals. Down and to the left is better.",
        traces=[_trace(line, evidence.rivals, most, below) for line in lines if line],
        layout={
            "xaxis": {
                "title": {"text": f"bytes between {machines} machines, logarithmic  (← fewer)"},
                "type": "log",
                **_ticks(least, most),
            },
            "yaxis": {"title": {"text": "loss in the mixture  (better ↓)"}},
            "showlegend": False,
        },
        table=DataTable(
            ["model", "bytes moved", "loss in the mixture"],
            [
                [point.row.label, data_size(point.moved), with_error(point.row.in_mixture, point.row.in_mixture_se)]
                for point in points
            ],
        ),
        height=420,
    )


def _line(evidence: Evidence, method: MethodEvidence, machines: int) -> list[_Point]:
    """The merges of a method, round after round; empty where nothing moves."""
    rows = evidence.table.rows if evidence.table else []
    before = [row for row in rows if row.kind == "round" and row.method == method.name]
    found = [*before, *(row for row in rows if row.kind == "merge" and row.label == method.name)]
    if method.is_joint:
        bytes_moved = [synchronised(evidence, method, machines)] * len(found)
    else:
        numbers = range(1, len(found) + 1)
        bytes_moved = [moved(len(method.branches), number, method.checkpoint_bytes) for number in numbers]
    labels = [row.label for row in found]
    if before:
        told = [f"{number} of {len(found)}" for number in range(1, len(found))]
        labels = [*(told if len(told) <= _LABELLED else [""] * len(told)), labels[-1]]
    return [_Point(*item) for item in zip(found, labels, bytes_moved, strict=True) if item[2] > 0]


def _merged_again(evidence: Evidence) -> list[list[_Point]]:
    """Methods that merge another's branches: the report has no training of theirs, the table has their bytes."""
    trained = {method.name for method in evidence.methods}
    rows = evidence.table.rows if evidence.table else []
    return [
        [_Point(row, row.label, row.bytes_moved)]
        for row in rows
        if row.kind == "merge" and row.label == row.method and row.method not in trained and row.bytes_moved
    ]


def _ticks(least: int, most: int) -> dict[str, Any]:
    """A tick a power of ten; where these are few, one at 2 and 5 times each, too."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    steps = (1, 2, 5) if last - first < _DECADES else (1,)
    values = [step * 10**power for power in range(first, last + 1) for step in steps]
    values = [value for value in values if least / 2 <= value <= most * 2]
    return {"tickmode": "array", "tickvals": values, "ticktext": [data_size(value) for value in values]}


def _trace(line: Sequence[_Point], rivals: Sequence[str], most: int, below: set[tuple[str, int]]) -> dict[str, Any]:
    """The merges of a method; labels stand beside the whisker, and `below` their point where another is above it."""
    name = line[0].row.method
    colour = method_colour(name, rivals)
    errors = [half_width(point.row.in_mixture_se or 0.0) for point in line]
    return {
        "type": "scatter",
        "mode": "lines+markers+text",
        "name": plotly_text(name),
        "x": [point.moved for point in line],
        "y": [point.row.in_mixture for point in line],
        "error_y": error_bars(errors, colour),
        "text": [plotly_text(point.label) for point in line],
        "textposition": [
            f"{'bottom' if (point.label, point.moved) in below else 'top'} {'left' if point.moved == most else 'right'}"
            for point in line
        ],
        "cliponaxis": False,
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 11, "symbol": method_symbol(name, rivals)},
        "customdata": [[plotly_text(point.row.label), data_size(point.moved)] for point in line],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]} moved<br>loss %{y:.3f}<extra></extra>",
    }
