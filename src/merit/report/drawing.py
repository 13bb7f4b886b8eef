"""What a check draws its figure with. The report lends this module, so that no check has to import the report.

A `Figure` holds plotly's dictionaries; a colour is the name of a CSS variable, such as "--accent". Text that comes from
a file goes through `plotly_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merit.base.words import signed
from merit.diagnose.records import Estimate
from merit.report.figure import DataTable, Figure
from merit.report.figures.style import (
    LEGEND,
    column_axis,
    dash,
    group_colour,
    method_colour,
    method_symbol,
    place_labels,
    row_axis,
)
from merit.report.page import plotly_text

__all__ = [
    "LEGEND",
    "DataTable",
    "Figure",
    "between",
    "column_axis",
    "dash",
    "group_colour",
    "model_colour",
    "model_symbol",
    "place_labels",
    "plotly_text",
    "row_axis",
    "whiskers",
]


def between(item: Estimate) -> str:
    """ "−0.012 to +0.034"."""
    return f"{signed(item.low)} to {signed(item.high)}"


def whiskers(items: Sequence[Estimate], colour: str) -> dict[str, Any]:
    """The intervals of points as plotly's error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [item.high - item.value for item in items],
        "arrayminus": [item.value - item.low for item in items],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def model_colour(label: str, others: Sequence[str] = ("joint",)) -> str:
    """The colour of a model of a diagnosis. Joint training's is no group's: branches stand beside it."""
    if label == "joint":
        return "--ink"
    return method_colour({"merge": "merit"}.get(label, label), others)


def model_symbol(label: str) -> str:
    """The marker of a model of a diagnosis."""
    if label.startswith("branch"):
        return "circle-open"
    return method_symbol({"merge": "merit"}.get(label, label), ["joint"])
