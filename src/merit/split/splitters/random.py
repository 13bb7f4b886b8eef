"""`random`: the control that any conflict-aware split must beat.

Each dataset draws its scores from (seed, its name, the axis) and the groups are cut by the very rule that MERIT uses.
So random groups are balanced exactly as MERIT's are, and adding a dataset changes no other dataset's draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from merit.config.sections import Balance
from merit.split.median import median_partition
from merit.split.partition import Partition
from merit.split.splitter import SplitRequest, Splitter


def random_partition(sizes: Mapping[str, int], *, r: int, seed: int, balance: Balance = "tokens") -> Partition:
    """K = 2^r random groups of near-equal size.

    Raises:
        InputError: fewer datasets than groups.
    """
    scores = {name: [_draw(seed, name, axis) for axis in range(r)] for name in sizes}
    return median_partition("random", scores, sizes, axes=r, seed=seed, balance=balance).model_copy(
        update={"scores": {}}
    )


def _draw(seed: int, name: str, axis: int) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.sha256(f"merit random {seed} {axis} {name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _partition(request: SplitRequest) -> Partition:
    return random_partition(request.sizes, r=request.r, seed=request.seed, balance=request.balance)


SPLITTER = Splitter(
    label="random split", how="at random, with groups of near-equal size", partition=_partition, role="chance"
)
