"""The forest of a comparison: each run's models minus those of the reference run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merit.report.figure import DataTable, Figure
from merit.report.safe import plotly_text
from merit.report.words import shorten, signed

if TYPE_CHECKING:
    from merit.report.versus.results import Difference

_NAMES = {"in_mixture": "in the mixture", "unseen": "unseen datasets", "drift": "drift from θ0"}


def differences_figure(differences: Sequence[Difference], reference: str) -> Figure:
    """Differences in loss with 95% intervals; left of zero the run is better than the reference."""
    rows = list(dict.fromkeys((item.run, item.model) for item in differences))
    faces = [face for face in _NAMES if any(item.face == face for item in differences)]
    traces = []
    for index, face in enumerate(faces):
        items = [item for item in differences if item.face == face]
        shift = (index - (len(faces) - 1) / 2) * 0.22
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _NAMES[face],
                "x": [item.value for item in items],
                "y": [rows.index((item.run, item.model)) + shift for item in items],
                "error_x": {
                    "type": "data",
                    "array": [item.high - item.value for item in items],
                    "thickness": 1.5,
                    "width": 4,
                    "color": f"--face-{index}",
                },
                "marker": {"color": f"--face-{index}", "size": 10, "symbol": ("circle", "diamond", "square")[index]},
                "hovertemplate": f"{_NAMES[face]}: <b>%{{x:+.3f}}</b> nats a token<extra></extra>",
            }
        )
    return Figure(
        id="differences",
        title=f"Each run minus {reference}",
        alt=f"Differences in loss of {len(rows)} models against the same models of the reference run, with 95% "
        "intervals. Left of zero the run is better.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "difference in loss  (← this run is better)"}, "zeroline": True},
            "yaxis": {
                "tickmode": "array",
                "tickvals": list(range(len(rows))),
                "ticktext": [plotly_text(shorten(f"{run}: {model}", 30)) for run, model in rows],
                "range": [len(rows) - 0.5, -0.5],
                "showgrid": False,
                "zeroline": False,
            },
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "showlegend": True,
        },
        table=DataTable(
            ["run", "model", "measure", "difference", "95% interval"],
            [
                [
                    item.run,
                    item.model,
                    _NAMES[item.face],
                    signed(item.value),
                    f"{signed(item.low)} to {signed(item.high)}",
                ]
                for item in differences
            ],
        ),
        height=120 + 56 * len(rows),
    )
