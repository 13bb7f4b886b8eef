"""Intervals: a bootstrap over examples, within each dataset, the same draws for all models (paired)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merit.diagnose.records import Estimate

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

DRAWS = 1000
_LOW, _HIGH = 2.5, 97.5


class Resampler:
    """Mean loss of a set of examples and of its bootstrap resamples, as matrix products.

    The mean is the results table's: token-weighted within a dataset, unweighted over datasets. It says how a result
    depends on the choice of examples, and nothing about seeds of training.
    """

    def __init__(self, tokens: Sequence[int], owner: Sequence[int], *, seed: int = 0, draws: int = DRAWS) -> None:
        n, who = np.asarray(tokens, np.float64), np.asarray(owner, np.int64)
        rng = np.random.default_rng(seed)
        self._plain = np.zeros(len(n))
        self._drawn = np.zeros((draws, len(n)))
        datasets = np.unique(who)
        for dataset in datasets:
            members = np.flatnonzero(who == dataset)
            counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
            weighted = counts * n[members]
            self._plain[members] = n[members] / n[members].sum() / len(datasets)
            self._drawn[:, members] = weighted / weighted.sum(1, keepdims=True) / len(datasets)

    def mean(self, losses: Matrix) -> Vector:
        """(P,) means of (P, N) losses."""
        found: Vector = losses @ self._plain
        return found

    def drawn(self, losses: Matrix) -> Matrix:
        """(draws, P) means of the resamples."""
        found: Matrix = self._drawn @ losses.T
        return found

    def estimate(self, losses: Vector) -> Estimate:
        """Mean of (N,) losses or of differences of losses, with its interval."""
        return interval(float(self.mean(losses[None, :])[0]), self.drawn(losses[None, :])[:, 0])


def interval(value: float, draws: Vector) -> Estimate:
    """`value` with the middle 95% of `draws`."""
    low, high = np.percentile(draws, [_LOW, _HIGH])
    return Estimate(value=value, low=float(low), high=float(high))
