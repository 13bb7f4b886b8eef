"""Chapter 5: what was gained, and what was not: differences with their intervals, the trade-off, every dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merit.base.words import decimal, short_labels, shorten, signed, with_error
from merit.evaluate.scores import Comparison, ModelScores, Table, TableRow
from merit.evaluate.statistics import half_width, told_apart
from merit.report.drawing import (
    LEGEND,
    LOSS_FACES,
    DataTable,
    Figure,
    Mark,
    error_bars,
    forest_layout,
    forest_traces,
    method_colour,
    method_symbol,
    place_labels,
    row_axis,
)
from merit.report.evidence import Evidence, find_grouping
from merit.report.page import Section, missing, plotly_text
from merit.report.table import is_best, shown_columns, shown_rows
from merit.report.verdict import MAIN, Verdict

ID, TITLE = "gains", "What was gained"

_ANSWER_CHARS = 700


def gains(evidence: Evidence, verdict: Verdict | None) -> Section:
    """What was gained."""
    table = evidence.table
    if table is None or not table.rows:
        return missing(ID, TITLE, "No model of this run has been evaluated yet.")
    drift = evidence.drift
    context = {
        "verdict": verdict,
        "notes": [] if verdict else table.notes,
        "results": _results(table, branches=False),
        "branches": _results(table, branches=True) if any(row.kind == "branch" for row in table.rows) else None,
        "figures": {figure.id: figure for figure in _figures(evidence, verdict) if figure},
        "prompts": [
            (prompt, answer[:_ANSWER_CHARS] + (" …" if len(answer) > _ANSWER_CHARS else ""))
            for prompt, answer in zip(drift.prompts, drift.answers, strict=False)
        ]
        if drift
        else [],
    }
    return Section(ID, TITLE, "gains", context)


def _results(table: Table, *, branches: bool) -> dict[str, Any]:
    rows = shown_rows(table, branches=branches)
    columns = shown_columns(rows)
    return {
        "columns": [column.title for column in columns],
        "rows": [
            {
                "label": row.label,
                "description": row.description,
                "main": row.method == "merit",
                "cells": [(column.cell(row), is_best(row, column, rows)) for column in columns],
            }
            for row in rows
        ],
    }


def _figures(evidence: Evidence, verdict: Verdict | None) -> list[Figure | None]:
    table, mixture = evidence.table, evidence.mixture
    rows = shown_rows(table) if table else []
    places = {row.label: position for position, row in enumerate(rows)}
    scores = sorted(evidence.scores, key=lambda item: places.get(item.label, len(places)))
    known = mixture.names if mixture else [score.name for item in scores[:1] for score in item.in_mixture]
    unseen = [item.name for item in mixture.unseen] if mixture else [s.name for i in scores[:1] for s in i.unseen]
    further = [row.label for row in rows if row.branches == MAIN and row.method != MAIN]
    compared = [[item for item in table.comparisons if item.a == label] for label in further] if table else []
    return [
        forest_figure(verdict.comparisons) if verdict else None,
        *(forest_figure(items, id=f"forest-{n}") for n, items in enumerate(compared)),
        tradeoff_figure(rows, "unseen", evidence.rivals),
        tradeoff_figure(rows, "drift", evidence.rivals),
        dataset_figure(scores, find_grouping(evidence, known).names, evidence.rivals, unseen=False),
        dataset_figure(scores, unseen, evidence.rivals, unseen=True),
    ]


_LABELLED = 60


def forest_figure(comparisons: Sequence[Comparison], *, id: str = "forest") -> Figure | None:
    """Loss of the merge minus loss of each other model: left of zero it is better. Whiskers: 95% intervals.

    θ0 is left out where there is anything else: the distance to it would squeeze all other differences together.
    """
    tuned = [item for item in comparisons if item.b != "base" and item.face in LOSS_FACES]
    comparisons = tuned or [item for item in comparisons if item.face in LOSS_FACES]
    if not comparisons:
        return None
    name = comparisons[0].a
    marks = [
        Mark(item.b, item.face, item.difference, half_width(item.standard_error), f"the merge is {_verdict(item)}")
        for item in comparisons
    ]
    others, faces = {mark.row for mark in marks}, {mark.face for mark in marks}
    return Figure(
        id=id,
        title=f"The merge ({name}) minus every other model",
        alt=f"Differences in loss between the merge and {len(others)} other models on {len(faces)} "
        "faces, with whiskers of 95% intervals. Left of zero the merge is better.",
        traces=forest_traces(marks),
        layout=forest_layout(marks, "the merge"),
        table=DataTable(
            ["against", "face", "difference", "standard error", "the merge is"],
            [
                [item.b, LOSS_FACES[item.face], signed(item.difference), f"{item.standard_error:.3f}", _verdict(item)]
                for item in comparisons
            ],
        ),
        height=120 + 64 * len(others),
    )


def tradeoff_figure(rows: Sequence[TableRow], face: str, rivals: Sequence[str]) -> Figure | None:
    """In-mixture loss of tuned models against the loss on another face; down and left is better."""
    kept = [row for row in rows if getattr(row, face) is not None and row.kind != "base"]
    if len(kept) < 2:
        return None
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
                "error_x": _whisker(row.in_mixture_se, row.method, rivals),
                "error_y": _whisker(getattr(row, f"{face}_se"), row.method, rivals),
                "marker": {
                    "size": 13 if row.method == "merit" else 10,
                    "color": method_colour(row.method, rivals),
                    "symbol": method_symbol(row.method, rivals),
                    "line": {"width": 2 if row.method == "base" else 0, "color": method_colour(row.method, rivals)},
                },
                "hovertemplate": f"<b>{plotly_text(row.label)}</b><br>in the mixture %{{x:.3f}}"
                f"<br>{LOSS_FACES[face]} %{{y:.3f}}<extra></extra>",
            }
        )
    return Figure(
        id=f"tradeoff-{face}",
        title=f"Loss in the mixture against {LOSS_FACES[face]}",
        alt=f"Scatter plot of {len(kept)} tuned models: loss in the mixture against {LOSS_FACES[face]}, "
        "with 95% intervals. Down and to the left is better.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "loss in the mixture  (← better)"}},
            "yaxis": {"title": {"text": f"{'loss, ' if face == 'unseen' else ''}{LOSS_FACES[face]}  (better ↓)"}},
            "showlegend": False,
        },
        table=DataTable(
            ["model", "loss in the mixture", LOSS_FACES[face]],
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


def dataset_figure(
    scores: Sequence[ModelScores], order: Sequence[str], rivals: Sequence[str], *, unseen: bool
) -> Figure | None:
    """Held-out loss of every dataset under every model: a row a dataset, a marker a model."""
    kept = [item for item in scores if item.kind != "branch"]
    by_model = {item.label: {s.name: s.loss for s in (item.unseen if unseen else item.in_mixture)} for item in kept}
    names = [name for name in order if any(name in losses for losses in by_model.values())]
    if not names:
        return None
    where = {name: position for position, name in enumerate(names)}
    traces: list[dict[str, Any]] = []
    for item in kept:
        found = [(name, by_model[item.label][name]) for name in names if name in by_model[item.label]]
        hollow = item.scale not in (0.0, 1.0) or item.kind == "round"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(item.label),
                "x": [loss for _, loss in found],
                "y": [where[name] for name, _ in found],
                "marker": {
                    "size": 11 if item.method == "merit" else 9,
                    "color": method_colour(item.method, rivals),
                    "symbol": method_symbol(item.method, rivals) + ("-open" if hollow else ""),
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


def _whisker(error: float | None, method: str, rivals: Sequence[str]) -> dict[str, Any]:
    return error_bars([half_width(error)] if error is not None else [], method_colour(method, rivals))


def _verdict(item: Comparison) -> str:
    return ("not told apart", "worse", "better")[told_apart(item.difference, item.standard_error)]
