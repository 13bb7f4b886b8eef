"""`kmeans`: clusters of the datasets' scores, with no regard to balance. What does balance cost?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from merit.base.errors import InputError
from merit.split.partition import Group, Partition
from merit.split.splitter import SplitRequest, Splitter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from merit.conflict.axes import AxesResult

RESTARTS = 20


def kmeans_partition(axes: AxesResult, tokens: Mapping[str, int], *, r: int, seed: int) -> Partition:
    """K = 2^r clusters on the first r axes, in the order of their datasets' first name; none is empty.

    Runs in the order of names, so that the mixture's order does not matter.

    Raises:
        InputError: fewer datasets than groups.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    order = sorted(axes.names)
    k = 2**r
    if k > len(order):
        raise InputError(f"{k} clusters need as many datasets; the mixture has {len(order)}", field="split.axes")
    score_of = dict(zip(axes.names, axes.scores, strict=True))
    points = np.array([score_of[name][:r] for name in order], dtype=np.float64)
    if len(np.unique(points, axis=0)) >= k:
        label = KMeans(n_clusters=k, n_init=RESTARTS, random_state=seed).fit_predict(points).astype(np.int64)
    else:  # scikit-learn would return fewer clusters, with a warning
        label = np.unique(points, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    _fill_empty(points, label, k)
    groups = sorted([order[i] for i in np.flatnonzero(label == c)] for c in range(k))
    return Partition(
        splitter="kmeans",
        groups=[Group.of(group, tokens) for group in groups],
        scores={name: score_of[name][:r] for name in axes.names},
        cuts=[],
        seed=seed,
    )


def _fill_empty(points: NDArray[np.float64], label: NDArray[np.int64], k: int) -> None:
    """Gives each empty cluster the point farthest from its centre among clusters of two or more. In place."""
    import numpy as np

    for empty in range(k):
        if (label == empty).any():
            continue
        sizes = np.bincount(label, minlength=k)
        centre = np.array([points[label == c].mean(0) if sizes[c] else points[0] * 0 for c in range(k)])
        distance = ((points - centre[label]) ** 2).sum(1)
        distance[sizes[label] < 2] = -1
        label[int(distance.argmax())] = empty


def _partition(request: SplitRequest) -> Partition:
    return kmeans_partition(request.measured_axes(), request.tokens, r=request.r, seed=request.seed)


SPLITTER = Splitter(label="kmeans split", how="by k-means on the conflict axes", partition=_partition, role="control")
