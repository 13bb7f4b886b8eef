"""Chapter 5: what was gained, and what was not."""

from __future__ import annotations

from typing import Any

from merit.evaluate.scores import Table
from merit.report.evidence import Evidence
from merit.report.figure import Figure, Section, missing
from merit.report.figures.gains import dataset_figure, forest_figure, tradeoff_figure
from merit.report.grouping import find_grouping
from merit.report.table import is_best, shown_columns, shown_rows
from merit.report.verdict import Verdict

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
    return [
        forest_figure(verdict.comparisons) if verdict else None,
        tradeoff_figure(rows, "unseen"),
        tradeoff_figure(rows, "drift"),
        dataset_figure(scores, find_grouping(evidence, known).names, unseen=False),
        dataset_figure(scores, unseen, unseen=True),
    ]
