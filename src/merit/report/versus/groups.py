"""Whether the runs found the same groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from merit.report.figure import DataTable, Section
from merit.report.grouping import group_label
from merit.report.versus.sides import Side
from merit.report.words import NONE, code, decimal, plural, series
from merit.split.partition import Partition


@dataclass(frozen=True)
class Groups:
    """Each run's groups, and how they agree over the datasets that two runs share."""

    of: Sequence[dict[str, int]]  # dataset → group; empty where a run has no split, or no groups of its own
    rand: Sequence[Sequence[float | None]]  # adjusted Rand index: 1 the same groups, 0 chance
    moved: Sequence[Sequence[str]]  # datasets that stand with others than in the first run, best match of the groups


def compare_groups(sides: Sequence[Side]) -> Groups:
    """Numbers of groups mean nothing across runs; which datasets stand together does."""
    of = [_groups(side.evidence.main.partition) for side in sides]
    rand = [[_rand(a, b) for b in of] for a in of]
    return Groups(of, rand, [_moved(of[0], other) for other in of])


def groups_section(sides: Sequence[Side], found: Groups) -> Section:
    """The chapter."""
    names = [side.name for side in sides]
    sentences = []
    for k in range(1, len(sides)):
        index = found.rand[0][k]
        if index is None:
            sentences.append(f"{code(names[k])} and {code(names[0])} share no two datasets that both have split.")
            continue
        moved = found.moved[k]
        told = f"{series([code(name) for name in moved], limit=8)} stand elsewhere" if moved else "no dataset moved"
        sentences.append(f"{code(names[k])} against {code(names[0])}: adjusted Rand index {decimal(index, 2)}; {told}.")
    rows = [[name, *(decimal(value, 2) for value in line)] for name, line in zip(names, found.rand, strict=True)]
    tables = [("Adjusted Rand index: 1 the same groups, 0 what chance gives", DataTable(["run", *names], rows))]
    datasets = sorted({name for groups in found.of for name in groups}, key=lambda name: _place(found.of, name))
    if datasets:
        cells = [
            [name, *(group_label(groups[name]) if name in groups else NONE for groups in found.of)] for name in datasets
        ]
        tables.append((f"Where {plural(len(datasets), 'dataset')} stood", DataTable(["dataset", *names], cells)))
    notes = ["Groups are numbered in each run anew: group 1 of one may be group 0 of another."] if datasets else []
    context = {"sentences": sentences, "tables": tables, "figures": [], "notes": notes}
    return Section("groups", "How each was split", "versus", context)


def _groups(partition: Partition | None) -> dict[str, int]:
    """Empty where every group has every dataset, as in a soup."""
    if partition is None or sum(len(group.datasets) for group in partition.groups) != len(partition.group_of):
        return {}
    return dict(partition.group_of)


def _rand(a: dict[str, int], b: dict[str, int]) -> float | None:
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        return None
    return float(adjusted_rand_score([a[name] for name in shared], [b[name] for name in shared]))


def _moved(a: dict[str, int], b: dict[str, int]) -> list[str]:
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return []
    together = np.zeros((max(a.values()) + 1, max(b.values()) + 1))
    for name in shared:
        together[a[name], b[name]] += 1
    match = {int(j): int(i) for i, j in zip(*linear_sum_assignment(-together), strict=True)}
    return [name for name in shared if match.get(b[name]) != a[name]]


def _place(groups: Sequence[dict[str, int]], name: str) -> tuple[list[int], str]:
    return [found.get(name, len(found)) for found in groups], name
