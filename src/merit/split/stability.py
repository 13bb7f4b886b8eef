"""Is the partition settled? Each half-set's own partition, judged by the other half, against the whole's.

Noise that decides a cut does so in one half only: its partition captures no conflict in the other half, whose noise is
independent. Where more examples would change nothing that matters, a half's partition captures there as much as the
whole's partition seems to. (Labels alone would say too little: datasets near a cut flip at no loss.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from merit.conflict.axes import principal_axes
from merit.conflict.similarity import HalfGram, cosines
from merit.split.halves import unit_products
from merit.split.splitters.pca import pca_partition
from merit.split.spread import above_chance


def stability(halves: HalfGram, tokens: Mapping[str, int], *, r: int, centre: bool = True) -> float:
    """Conflict captured across the halves ÷ conflict captured by the whole in itself, both above chance.

    Near 1: settled, and that with half of the examples already. Near 0: the cuts follow noise. NaN where a dataset has
    a single calibration example.

    Raises:
        InputError: fewer datasets than groups.
    """
    if halves.tokens.min() == 0:
        return float("nan")
    names = list(halves.names)
    weights = [1.0] * len(names)  # as for the axes

    def groups(products: np.ndarray) -> list[list[int]]:
        partition = pca_partition(principal_axes(names, cosines(products), axes=r, centre=centre), tokens, r=r)
        return partition.indices(names)

    across = [
        above_chance(unit_products(halves, 1 - half, debias=True), groups(unit_products(halves, half)), weights)
        for half in range(2)
    ]
    whole = above_chance(unit_products(halves, None, debias=True), groups(halves.means), weights)
    return float(np.mean(across)) / whole if whole > 0 else 0.0
