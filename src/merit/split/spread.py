"""The spread of a partition: how much of the conflict between datasets lies *between* its groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def between_variance(similarity: Matrix, groups: Sequence[Sequence[int]], weights: Sequence[float]) -> float:
    """Σ_k w_k ‖ḡ_k − ḡ‖² of the unit gradients, from their Gram matrix alone (equation of Theorem 1 with H = I).

    Args:
        similarity: (T, T) cosines.
        groups: indices of the datasets of each group; together they cover every dataset once.
        weights: (T,) tokens of each dataset; w_k and the means ḡ_k, ḡ weigh by them.
    """
    w = np.asarray(weights, dtype=np.float64)
    w = w / w.sum()
    total = 0.0
    for group in groups:
        part = w[list(group)]
        if part.sum() > 0:
            total += float(part @ similarity[np.ix_(group, group)] @ part / part.sum())
    return total - float(w @ similarity @ w)


def captured(
    similarity: Matrix,
    groups: Sequence[Sequence[int]],
    reference: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    draws: int = 2000,
) -> float:
    """Share of the conflict that a partition captures: 1 is what `reference` does, 0 random groups of the same sizes.

    Labels flip easily where datasets crowd a cut, at no loss; this is what to compare two partitions by. `similarity`
    should be the best there is (of full gradients), whatever `groups` were found with.
    """
    best = above_chance(similarity, reference, weights, draws=draws)
    return above_chance(similarity, groups, weights, draws=draws) / best


def above_chance(
    similarity: Matrix, groups: Sequence[Sequence[int]], weights: Sequence[float], *, draws: int = 2000
) -> float:
    """`between_variance` minus what random groups of the same sizes have on average."""
    rng = np.random.default_rng(0)
    sizes = np.cumsum([len(group) for group in groups])[:-1]
    chance = 0.0
    for _ in range(draws):
        shuffled = [part.tolist() for part in np.split(rng.permutation(similarity.shape[0]), sizes)]
        chance += between_variance(similarity, shuffled, weights) / draws
    return between_variance(similarity, groups, weights) - chance
