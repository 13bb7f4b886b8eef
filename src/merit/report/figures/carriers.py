"""Which layers carry the conflict."""

from __future__ import annotations

from collections.abc import Sequence

from merit.conflict.explain import Carrier, Explanation
from merit.report.figure import DataTable, Figure
from merit.report.figures.layout import column_axis
from merit.report.safe import plotly_text
from merit.report.words import count


def layers_figure(explanation: Explanation) -> Figure:
    """Each layer's share of the whole conflict; the table holds its share of every axis, and the kinds of module."""
    layers = explanation.layers
    largest = max(layers, key=lambda layer: layer.share)
    axes = len(layers[0].axes)
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
                **column_axis([_short(layer.name) for layer in layers]),
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
    """For under a narrow bar, where Plotly leaves out what does not fit."""
    return name.removeprefix("layer ") if name.startswith("layer ") else "rest"


def _row(carrier: Carrier) -> Sequence[str]:
    return [carrier.name, count(carrier.numbers), *(f"{share:.1%}" for share in (carrier.share, *carrier.axes))]
