"""What each run cost."""

from __future__ import annotations

from collections.abc import Sequence

from merit.report.figure import DataTable, Section
from merit.report.sections.cost import stage_totals
from merit.report.versus.sides import Side
from merit.report.words import NONE, count, data_size, duration

HEADER = ["run", "branches", "supervised tokens", "training, all branches", "longest branch", "whole run", "moved once"]


def cost_rows(sides: Sequence[Side]) -> list[list[str]]:
    """The main method of each run; the whole run has its baselines and its evaluation in it."""
    return [_row(side) for side in sides]


def costs_section(sides: Sequence[Side]) -> Section:
    """The chapter."""
    stages = {side.name: stage_totals(side.evidence.events) for side in sides}
    names = list(dict.fromkeys(name for found in stages.values() for name in found))
    by_stage = [
        [name, *(duration(found[name]) if name in found else NONE for found in stages.values())] for name in names
    ]
    tables = [("The main method of each run", DataTable(HEADER, cost_rows(sides)))]
    if by_stage:
        tables.append(("Time a stage, over all sittings", DataTable(["stage", *stages], by_stage)))
    hosts = {side.name: sorted({str(e["host"]) for e in side.evidence.events if e.get("host")}) for side in sides}
    other = len({tuple(found) for found in hosts.values()}) > 1
    notes = ["The runs were made on different machines: their times do not compare."] if other else []
    return Section(
        "cost", "What each cost", "versus", {"sentences": [], "tables": tables, "figures": [], "notes": notes}
    )


def _row(side: Side) -> list[str]:
    branches = side.evidence.main.branches
    results = [branch.result for branch in branches if branch.result]
    seconds = [result.seconds for result in results]
    whole = sum(stage_totals(side.evidence.events).values())
    moved = sum(branch.checkpoint_bytes for branch in branches)
    return [
        side.name,
        str(len(branches)) if len(results) == len(branches) else f"{len(results)} of {len(branches)}",
        count(sum(result.supervised_tokens for result in results)) if results else NONE,
        duration(sum(seconds)) if seconds else NONE,
        duration(max(seconds)) if seconds else NONE,
        duration(whole) if whole else NONE,
        data_size(moved) if len(branches) > 1 and moved else NONE,
    ]
