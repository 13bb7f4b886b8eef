"""Does a cheaper measurement (a smaller sibling, fewer examples, another sketch) find the same conflict?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from merit.conflict.axes import principal_axes
from merit.run.record import Record
from merit.split.splitters.pca import pca_partition
from merit.split.spread import captured

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
