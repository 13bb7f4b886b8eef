"""The similarity that one half-set sees, for judging what the other one found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from merit.conflict.similarity import HalfGram


def unit_products(halves: HalfGram, half: int | None, *, debias: bool = False) -> NDArray[np.float64]:
    """(T, T): products of one half's mean gradients (None: of the whole's) in units of the whole mean's norm.

    With `debias` the diagonal, which would hold noise, is the product of the two halves' means, whose noise is
    independent: then sums over groups of datasets are unbiased.
    """
    first, second = (np.eye(2)[h] / halves.tokens for h in range(2))
    chosen = 1 / halves.tokens.sum(1, keepdims=True) * np.ones(2) if half is None else (first, second)[half]
    products = halves.combine(chosen)
    if debias:
        np.fill_diagonal(products, np.diag(halves.combine(first, second)))
    unit: NDArray[np.float64] = products / np.outer(halves.norms, halves.norms)
    return unit
