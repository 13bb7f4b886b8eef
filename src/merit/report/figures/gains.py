"""What was gained: differences with their intervals, the trade-off, and the loss of every dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merit.evaluate.scores import Comparison, ModelScores, TableRow
from merit.evaluate.statistics import half_width, told_apart
from merit.report.figure import DataTable, Figure
from merit.report.figures.forest import FACES, Mark, forest_layout, forest_traces
from merit.report.figures.style import LEGEND, method_colour, method_symbol, place_labels, row_axis
from merit.report.page import plotly_text
from merit.report.words import decimal, short_labels, shorten, signed, with_error

_LABELLED = 60


def forest_figure(comparisons: Sequence[Comparison]) -> Figure | None:
    """Loss of the merge minus loss of each other model: left of zero it is better. Whiskers: 95% intervals.

    θ0 is left out where there is anything else: the distance to it would squeeze all other differences together.
    """
    tuned = [item for item in comparisons if item.b != "base" and item.face in FACES]
    comparisons = tuned or [item for item in comparisons if item.face in FACES]
    if not comparisons:
        return None
    name = comparisons[0].a
    marks = [
        Mark(item.b, item.face, item.difference, half_width(item.standard_error), f"the merge is {_verdict(item)}")
        for item in comparisons
    ]
    others, faces = {mark.row for mark in marks}, {mark.face for mark in marks}
    return Figure(
        id="forest",
        title=f"The merge ({name}) minus every other model",
        alt=f"Differences in loss between the merge and {len(others)} other models on {len(faces)} "
        "faces, with whiskers of 95% intervals. Left of zero the merge is better.",
        traces=forest_traces(marks),
        layout=forest_layout(marks, "the merge"),
        table=DataTable(
            ["against", "face", "difference", "standard error", "the merge is"],
            [
                [item.b, FACES[item.face], signed(item.difference), f"{item.standard_error:.3f}", _verdict(item)]
                for item in comparisons
            ],
        ),
        height=120 + 64 * len(others),
    )


def tradeoff_figure(rows: Sequence[TableRow], face: str) -> Figure | None:
    """In-mixture loss of tuned models against the loss on another face; down and left is better."""
    kept = [row for row in rows if getattr(row, face) is not None and row.kind != "base"]
    if len(kept) < 2:
        return None
    methods = list(dict.fromkeys(row.method for row in kept if row.method not in ("base", "merit")))
    traces = []
    labels = [shorten(row.label, 24) for row in kept]
    spots = place_labels([(row.in_mixture, getattr(row, face)) for row in kept], labels, size=(220, 180))
    for row, label, spot in zip(kept, labels, spots, strict=True):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": plotly_text(row.label),
                "x": [row.in_mixture],
                "y": [getattr(row, face)],
                "text": [plotly_text(label)],
                "textposition": spot,
                "cliponaxis": False,
                "error_x": _whisker(row.in_mixture_se, row.method, methods),
                "error_y": _whisker(getattr(row, f"{face}_se"), row.method, methods),
                "marker": {
                    "size": 13 if row.method == "merit" else 10,
                    "color": method_colour(row.method, methods),
                    "symbol": method_symbol(row.method, methods),
                    "line": {"width": 2 if row.method == "base" else 0, "color": method_colour(row.method, methods)},
                },
                "hovertemplate": f"<b>{plotly_text(row.label)}</b><br>in the mixture %{{x:.3f}}"
                f"<br>{FACES[face]} %{{y:.3f}}<extra></extra>",
            }
        )
    return Figure(
        id=f"tradeoff-{face}",
        title=f"Loss in the mixture against {FACES[face]}",
        alt=f"Scatter plot of {len(kept)} tuned models: loss in the mixture against {FACES[face]}, "
        "with 95% intervals. Down and to the left is better.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "loss in the mixture  (← better)"}},
            "yaxis": {"title": {"text": f"{'loss, ' if face == 'unseen' else ''}{FACES[face]}  (better ↓)"}},
            "showlegend": False,
        },
        table=DataTable(
            ["model", "loss in the mixture", FACES[face]],
            [
                [
                    row.label,
                    with_error(row.in_mixture, row.in_mixture_se),
                    with_error(getattr(row, face), getattr(row, f"{face}_se")),
                ]
                for row in kept
            ],
        ),
        height=420,
    )


def dataset_figure(scores: Sequence[ModelScores], order: Sequence[str], *, unseen: bool) -> Figure | None:
    """Held-out loss of every dataset under every model: a row a dataset, a marker a model."""
    kept = [item for item in scores if item.kind != "branch"]
    by_model = {item.label: {s.name: s.loss for s in (item.unseen if unseen else item.in_mixture)} for item in kept}
    names = [name for name in order if any(name in losses for losses in by_model.values())]
    if not names:
        return None
    methods = list(dict.fromkeys(item.method for item in kept if item.method not in ("base", "merit")))
    where = {name: position for position, name in enumerate(names)}
    traces: list[dict[str, Any]] = []
    for item in kept:
        found = [(name, by_model[item.label][name]) for name in names if name in by_model[item.label]]
        hollow = item.scale not in (0.0, 1.0)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(item.label),
                "x": [loss for _, loss in found],
                "y": [where[name] for name, _ in found],
                "marker": {
                    "size": 11 if item.method == "merit" else 9,
                    "color": method_colour(item.method, methods),
                    "symbol": method_symbol(item.method, methods) + ("-open" if hollow else ""),
                    "line": {"width": 2 if hollow or item.method == "base" else 0},
                },
                "hovertemplate": f"%{{y}}<br><b>{plotly_text(item.label)}</b> %{{x:.3f}}<extra></extra>",
            }
        )
    kind = "unseen" if unseen else "trained-on"
    return Figure(
        id="unseen-losses" if unseen else "dataset-losses",
        title="Held-out loss of each unseen dataset" if unseen else "Held-out loss of each dataset",
        alt=f"Dot plot of the held-out loss of {len(names)} {kind} datasets under {len(kept)} models. "
        "Further left is better.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "held-out loss  (← better)"}},
            "yaxis": {**row_axis(short_labels(names, 26), grid=True), "showticklabels": len(names) <= _LABELLED},
            "legend": LEGEND,
            "showlegend": True,
        },
        table=DataTable(
            ["dataset", *(item.label for item in kept)],
            [[name, *(decimal(by_model[item.label].get(name)) for item in kept)] for name in names],
        ),
        height=max(260, min(1400, 140 + 26 * len(names))),
    )


def _whisker(error: float | None, method: str, methods: Sequence[str]) -> dict[str, Any]:
    array = [half_width(error)] if error is not None else []
    return {"type": "data", "array": array, "thickness": 1, "width": 3, "color": method_colour(method, methods)}


def _verdict(item: Comparison) -> str:
    return ("not told apart", "worse", "better")[told_apart(item.difference, item.standard_error)]
