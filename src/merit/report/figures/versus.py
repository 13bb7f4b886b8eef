"""The forest of a comparison: each run's models minus those of the reference run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merit.base.words import signed
from merit.report.figure import DataTable, Figure
from merit.report.figures.forest import FACES, Mark, forest_layout, forest_traces

if TYPE_CHECKING:
    from merit.report.versus.results import Difference


def differences_figure(differences: Sequence[Difference], reference: str) -> Figure:
    """Differences in loss with 95% intervals; left of zero the run is better than the reference."""
    marks = [
        Mark(f"{item.run}: {item.model}", item.face, item.value, item.high - item.value, item.verdict)
        for item in differences
    ]
    count = len({mark.row for mark in marks})
    return Figure(
        id="differences",
        title=f"Each run minus {reference}",
        alt=f"Differences in loss of {count} models against the same models of the reference run, with 95% "
        "intervals. Left of zero the run is better.",
        traces=forest_traces(marks),
        layout=forest_layout(marks, "this run"),
        table=DataTable(
            ["run", "model", "measure", "difference", "95% interval"],
            [
                [
                    item.run,
                    item.model,
                    FACES[item.face],
                    signed(item.value),
                    f"{signed(item.low)} to {signed(item.high)}",
                ]
                for item in differences
            ],
        ),
        height=120 + 56 * count,
    )
