"""Does a cheaper measurement (a smaller sibling, fewer examples, another sketch) find the same conflict?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from merit.base.errors import InputError
from merit.base.record import Record
from merit.conflict.axes import AxesResult, principal_axes
from merit.conflict.similarity import load_similarity
from merit.data.mixture import Mixture
from merit.run.layout import RunDir
from merit.split.evidence import captured
from merit.split.partition import Partition
from merit.split.splitters.pca import pca_partition

PERMUTATIONS = 2000


class Agreement(Record):
    """How two measurements of the same datasets agree."""

    mantel_r: float  # Pearson correlation of the cosines off the diagonal
    mantel_p: float  # how often shuffled datasets correlate as much
    adjusted_rand: float  # of the two partitions: 1 the same, 0 chance
    captured: float  # share of the reference's conflict that the other's partition captures: the figure that matters


def agreement(
    names: Sequence[str],
    reference: NDArray[np.float64],
    other: NDArray[np.float64],
    tokens: Mapping[str, int],
    *,
    r: int,
    centre: bool = True,
) -> Agreement:
    """Compares two (T, T) similarity matrices in the order of `names`, and the partitions that follow from them.

    Raises:
        InputError: fewer datasets than groups.
    """
    correlation, p = mantel(reference, other)
    partitions = [
        pca_partition(principal_axes(names, matrix, axes=r, centre=centre), tokens, r=r)
        for matrix in (reference, other)
    ]
    labels = [[partition.group_of[name] for name in names] for partition in partitions]
    first, second = (partition.indices(names) for partition in partitions)
    weights = [1.0] * len(names)  # as for the axes
    return Agreement(
        mantel_r=correlation,
        mantel_p=p,
        adjusted_rand=float(adjusted_rand_score(*labels)),
        captured=captured(reference, second, first, weights),
    )


def mantel(a: NDArray[np.float64], b: NDArray[np.float64], *, permutations: int = PERMUTATIONS) -> tuple[float, float]:
    """Mantel's test: correlation of two matrices off the diagonal, and its one-sided p under shuffled datasets."""
    upper = np.triu_indices(len(a), 1)
    rng = np.random.default_rng(0)

    def correlation(matrix: NDArray[np.float64]) -> float:
        return float(np.corrcoef(a[upper], matrix[upper])[0, 1])

    actual = correlation(b)
    shuffles = (rng.permutation(len(b)) for _ in range(permutations))
    beaten = sum(correlation(b[np.ix_(order, order)]) >= actual for order in shuffles)
    return actual, (1 + beaten) / (1 + permutations)


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
