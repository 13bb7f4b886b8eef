"""What the layouts of several figures share, in plotly's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merit.report.safe import plotly_text

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
