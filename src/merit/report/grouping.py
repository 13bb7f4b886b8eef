"""Which dataset belongs to which group, and in what order datasets are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merit.report.evidence import Evidence


@dataclass(frozen=True)
class Grouping:
    """Datasets in drawing order. `group` is None where there is no split yet, or where every branch has them all."""

    names: Sequence[str]
    group: dict[str, int | None]
    count: int

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(group, first position, last position) of the runs of one group in drawing order."""
        found: list[tuple[int, int, int]] = []
        for position, name in enumerate(self.names):
            k = self.group[name]
            if k is None:
                continue
            if found and found[-1][0] == k:
                found[-1] = (k, found[-1][1], position)
            else:
                found.append((k, position, position))
        return found


def group_label(k: int) -> str:
    """Groups are counted from 0, as the folders of their branches are."""
    return f"group {k}"


def find_grouping(evidence: Evidence, names: Sequence[str]) -> Grouping:
    """Groups one after the other, and within a group along the first axis, so that neighbours are alike."""
    partition = evidence.main.partition
    axes = evidence.axes
    first = dict(zip(axes.names, (row[0] if row else 0.0 for row in axes.scores), strict=False)) if axes else {}
    groups: dict[str, int | None] = dict.fromkeys(names)
    if partition and sum(len(group.datasets) for group in partition.groups) == len(partition.group_of):
        groups = {name: partition.group_of.get(name) for name in names}
    order = sorted(names, key=lambda name: (_last(groups[name]), first.get(name, 0.0), name))
    count = len({k for k in groups.values() if k is not None})
    return Grouping(order, groups, count)


def _last(k: int | None) -> tuple[bool, int]:
    return (k is None, k or 0)
