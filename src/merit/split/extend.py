"""A partition that stays while its mixture changes: datasets come and go, the others keep their branches.

A new dataset's coordinate on a saved axis is what a PCA gives a point that it was not fitted on: with S = U Λ Uᵀ of the
old datasets and c the new one's (double-centred) cosines with them, its score is Uᵀc / √Λ. For an old dataset that is
its own score. The saved cuts then say which group it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.conflict.records import AxesResult
from merit.split.partition import Group, Partition
from merit.split.splitter import known_splitter


def extend_partition(
    kept: Partition,
    axes: AxesResult | None,
    names: list[str],
    similarity: NDArray[np.float64] | None,
    tokens: Mapping[str, int],
) -> Partition:
    """`kept` without the datasets that are gone, and with those that are new.

    Args:
        axes: the axes that `kept` was cut on. Without them, or for splitters that cut no axes, a new dataset goes to
            the group with the fewest tokens.
        names: the mixture's datasets now, in the order of `similarity` (T, T).
        tokens: dataset → planned supervised tokens.

    Raises:
        InputError: a group would be left without a dataset.
    """
    members = [[name for name in group.datasets if name in tokens] for group in kept.groups]
    for k, group in enumerate(members):
        if not group:
            raise InputError(
                f"branch {k} would be left without a dataset; set `split.keep: false` and run again to split anew",
                field="mixture",
            )
    on_axes = known_splitter(kept.splitter).on_axes
    scores = {name: row for name, row in kept.scores.items() if name in tokens}
    for name in sorted(set(names) - {name for group in members for name in group}):
        if axes is not None and similarity is not None and kept.cuts and on_axes:
            scores[name] = project(axes, names, similarity, name)
            k = _by_cuts(kept, scores[name])
        else:
            k = min(range(len(members)), key=lambda k: (sum(tokens[item] for item in members[k]), k))
        members[k].append(name)
    groups = [Group(datasets=sorted(group), tokens=sum(tokens[name] for name in group)) for group in members]
    return kept.model_copy(update={"groups": groups, "scores": scores})


def project(axes: AxesResult, names: list[str], similarity: NDArray[np.float64], name: str) -> list[float]:
    """The coordinates of dataset `name` on axes that it was not part of, one a kept axis."""
    old = [item for item in axes.names if item in names]
    rows = [axes.names.index(item) for item in old]
    here = [names.index(item) for item in old]
    square = similarity[np.ix_(here, here)]
    cosines = similarity[names.index(name), here]
    if axes.centred:
        cosines = cosines - cosines.mean() - square.mean(axis=0) + square.mean()
    scores = np.asarray(axes.scores, np.float64)[rows]
    values = np.asarray(axes.eigenvalues[: scores.shape[1]], np.float64)
    found: list[float] = np.where(values > 0, scores.T @ cosines / np.where(values > 0, values, 1.0), 0.0).tolist()
    return found


def _by_cuts(kept: Partition, scores: list[float]) -> int:
    """The group whose side of every cut the scores are on: group k's binary digits, axis 0 first."""
    k = 0
    for axis in range(len(kept.groups).bit_length() - 1):
        cut = kept.cuts[2**axis - 1 + k]
        k = 2 * k + (scores[axis] > cut.threshold)
    return k
