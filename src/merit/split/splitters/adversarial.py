"""`adversarial`: the paper's conflict-induced control, which puts conflicting datasets into the same group.

MERIT's cuts make the spread Σ_k w_k ‖ḡ_k − ḡ‖² between groups large; this splitter makes it small. It starts from a
random balanced partition and swaps datasets between groups, or moves one, taking always the step that lowers the
spread most among those that leave the tokens balanced (no worse than the start, or within 5% of the mean group),
until none does. Every group then averages to nearly the same gradient, and the conflict is inside the groups. The
paper does not say how it built its control; for r = 1 any balanced minimiser of the spread is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from merit.split.partition import Group, Partition
from merit.split.splitter import SplitRequest, Splitter
from merit.split.splitters.random import random_partition

if TYPE_CHECKING:
    from merit.split.descent import Matrix


def adversarial_partition(
    names: Sequence[str], similarity: Matrix, tokens: Mapping[str, int], *, r: int, seed: int
) -> Partition:
    """K = 2^r groups, each as conflicting inside as balance allows. `similarity` is in the order of `names`.

    Raises:
        InputError: fewer datasets than groups.
    """
    import numpy as np

    from merit.split.descent import descend

    start = random_partition(tokens, r=r, seed=seed)
    order = sorted(names)
    index = [names.index(name) for name in order]
    matrix = similarity[np.ix_(index, index)]
    weights = np.array([max(tokens[name], 0) for name in order], dtype=np.float64)
    if weights.sum() == 0:
        weights[:] = 1
    label = np.array([start.group_of[name] for name in order])
    descend(matrix, weights, label, 2**r)
    groups = [[order[i] for i in np.flatnonzero(label == k)] for k in range(2**r)]
    return Partition(
        splitter="adversarial",
        groups=[Group(datasets=group, tokens=sum(tokens[name] for name in group)) for group in groups],
        scores={},
        cuts=[],
        seed=seed,
    )


def _partition(request: SplitRequest) -> Partition:
    similarity = request.measured_similarity()
    return adversarial_partition(list(request.tokens), similarity, request.tokens, r=request.r, seed=request.seed)


SPLITTER = Splitter(
    label="conflict-induced split",
    how="so that conflicting datasets stand together (the paper's negative control)",
    partition=_partition,
    role="control",
)
