"""A forest plot: differences in loss with their intervals, a row a comparison, a marker a face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merit.report.figures.style import LEGEND, row_axis
from merit.report.page import plotly_text
from merit.report.words import shorten

FACES = {"in_mixture": "in the mixture", "unseen": "unseen datasets", "drift": "drift from θ0"}
_SYMBOLS = ("circle", "diamond", "square")


@dataclass(frozen=True)
class Mark:
    """One difference, in nats a token."""

    row: str
    face: str  # of FACES
    value: float
    reach: float  # half of the interval
    verdict: str


def forest_traces(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """A trace a face; the rows in the order of their first marks."""
    rows = _rows(marks)
    faces = [face for face in FACES if any(mark.face == face for mark in marks)]
    traces = []
    for index, face in enumerate(faces):
        drawn = [mark for mark in marks if mark.face == face]
        shift = (index - (len(faces) - 1) / 2) * 0.22
        colour = f"--face-{index}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": FACES[face],
                "x": [mark.value for mark in drawn],
                "y": [rows.index(mark.row) + shift for mark in drawn],
                "error_x": {
                    "type": "data",
                    "array": [mark.reach for mark in drawn],
                    "thickness": 1.5,
                    "width": 4,
                    "color": colour,
                },
                "marker": {"color": colour, "size": 10, "symbol": _SYMBOLS[index]},
                "customdata": [[plotly_text(mark.row), plotly_text(mark.verdict)] for mark in drawn],
                "hovertemplate": f"%{{customdata[0]}}<br>{FACES[face]}: <b>%{{x:+.3f}}</b> nats a token, "
                "%{customdata[1]}<extra></extra>",
            }
        )
    return traces


def forest_layout(marks: Sequence[Mark], better: str) -> dict[str, Any]:
    """`better`: who gains left of zero."""
    return {
        "xaxis": {"title": {"text": f"difference in loss  (← {better} is better)"}, "zeroline": True},
        "yaxis": row_axis([shorten(row, 30) for row in _rows(marks)]),
        "legend": LEGEND,
        "showlegend": True,
    }


def _rows(marks: Sequence[Mark]) -> list[str]:
    return list(dict.fromkeys(mark.row for mark in marks))
