"""Which datasets are alike: a dendrogram by average linkage of 1 − cosine, to stand above the columns of a heat map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform


@dataclass(frozen=True)
class Tree:
    """Leaves from left to right, as indices into the matrix; branches as polylines over their positions 0, 1, 2 …"""

    order: list[int]
    x: list[float | None]  # None lifts the pen
    y: list[float | None]  # 1 − cosine at which two clusters join


def grow_tree(cosines: NDArray[np.float64]) -> Tree | None:
    """None where there is nothing to join, or a cosine is no number."""
    if len(cosines) < 3 or not np.isfinite(cosines).all():
        return None
    distances = np.clip(1 - (cosines + cosines.T) / 2, 0, 2)
    np.fill_diagonal(distances, 0)
    found: dict[str, Any] = dendrogram(linkage(squareform(distances, checks=False), "average"), no_plot=True)
    x: list[float | None] = []
    y: list[float | None] = []
    for across, up in zip(found["icoord"], found["dcoord"], strict=True):
        x += [*((float(value) - 5) / 10 for value in across), None]  # scipy puts leaves at 5, 15, 25 …
        y += [*(round(float(value), 4) for value in up), None]
    return Tree([int(leaf) for leaf in found["leaves"]], x, y)
