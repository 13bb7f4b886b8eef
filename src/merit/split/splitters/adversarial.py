"""`adversarial`: the paper's conflict-induced control, which puts conflicting datasets into the same group.

It is greedy. Each of the K groups starts from the most conflicting pair (the least cosine) of the datasets that are
still free. Then, again and again, the free dataset and the group whose mean cosine is the least of all come together.
Ties go to the earlier name, and to the earlier group. The groups are not balanced: the paper does not say that they
are, nor how it starts more than one group.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from merit.base.errors import InputError
from merit.split.partition import Partition
from merit.split.splitter import SplitRequest, Splitter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def greedy_groups(names: Sequence[str], similarity: NDArray[np.float64], groups: int) -> list[list[str]]:
    """`groups` lists of names. `similarity` (T, T) is in the order of `names`.

    Raises:
        InputError: fewer datasets than groups.
    """
    if len(names) < groups:
        raise InputError(f"{groups} groups need as many datasets; the mixture has {len(names)}", field="split.axes")
    cosine = {
        (first, second): float(similarity[i, j])
        for (i, first), (j, second) in itertools.permutations(enumerate(names), 2)
    }
    free = sorted(names)
    made: list[list[str]] = []
    while len(made) < groups:
        # A pair, as long as every later group still gets a dataset.
        pairs = itertools.combinations(free, 2) if len(free) > groups - len(made) else ((name,) for name in free)
        seed = min(pairs, key=lambda pair: (cosine.get(pair, 0.0), pair))
        made.append(list(seed))
        free = [name for name in free if name not in seed]
    while free:

        def mean(name: str, k: int) -> float:
            return sum(cosine[name, other] for other in made[k]) / len(made[k])

        _, name, k = min((mean(name, k), name, k) for name in free for k in range(groups))
        made[k].append(name)
        free.remove(name)
    return [sorted(group) for group in made]


def _partition(request: SplitRequest) -> Partition:
    similarity = request.measured_similarity()
    return request.partition(greedy_groups(list(request.tokens), similarity, 2**request.r))


SPLITTER = Splitter(
    label="conflict-induced split",
    how="so that conflicting datasets stand together (the paper's negative control)",
    partition=_partition,
    role="control",
)
