"""Compares the conflict that two runs have measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from merit.conflict.result import AxesResult, load_similarity
from merit.data.mixture import Mixture
from merit.errors import InputError
from merit.run.layout import RunDir
from merit.split.agreement import Agreement, agreement
from merit.split.partition import Partition

_FEWEST = 4  # datasets: with fewer, six cosines correlate by chance


def compare_runs(reference: Path, other: Path, *, axes: int | None = None) -> tuple[list[str], Agreement]:
    """The datasets that both runs have, and how far `other` finds the conflict of `reference` in them.

    Args:
        axes: to cut along; by default as many as the partition of `reference` has, one if it has none.

    Raises:
        InputError: no measured conflict; fewer than four datasets in common; more groups than datasets.
    """
    first, second = _Measured(RunDir(reference)), _Measured(RunDir(other))
    names = [name for name in first.names if name in second.names]
    if len(names) < _FEWEST:
        raise InputError(f"the runs have {len(names)} datasets in common; {_FEWEST} are needed", file=other)
    if axes is None:
        partition = RunDir(reference).method().partition
        groups = len(Partition.load(partition).groups) if partition.is_file() else 2
        axes = max(1, groups.bit_length() - 1)
    tokens = Mixture.load(RunDir(reference).mixture).planned_tokens
    return names, agreement(
        names, first.of(names), second.of(names), {name: tokens[name] for name in names}, r=axes, centre=first.centred
    )


class _Measured:
    def __init__(self, run: RunDir) -> None:
        found = AxesResult.load(run.axes)
        self.names, self.centred = found.names, found.centred
        self._cosines = load_similarity(run.similarity)
        if self._cosines.shape != (len(self.names),) * 2:
            raise InputError("not the similarity of this run's datasets", file=run.similarity)

    def of(self, names: list[str]) -> np.ndarray:
        order = [self.names.index(name) for name in names]
        return self._cosines[np.ix_(order, order)]
