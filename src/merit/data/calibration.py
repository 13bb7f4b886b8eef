"""The calibration set: the train examples that a dataset's gradient is measured on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from merit.data.store import EncodedDataset

_MIX = np.uint64(0x9E3779B97F4A7C15)


def calibration_rows(dataset: EncodedDataset, n: int) -> NDArray[np.int64]:
    """`n` rows of `dataset.train`, or all when there are fewer.

    They are the smallest by a second hash of the content: the same whatever the order of the source, and unlike the
    first rows in order of content hash, not the ones that a weight below 1 keeps.

    Returns:
        (min(n, train rows),) int64 row numbers, in order of the second hash.
    """
    rows = dataset.train
    keys = _second_hash(dataset.ids[rows])
    # Ties are broken by the first hash, which is the order of `train`.
    return rows[np.argsort(keys, kind="stable")][:n]


def _second_hash(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(rows,) splitmix64 of the low half: the high half orders `train`, and the two are independent bits of SHA-256."""
    x = ids[:, 1] + _MIX
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
