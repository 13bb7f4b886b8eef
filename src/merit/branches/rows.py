"""The rows that a branch trains on."""

from __future__ import annotations

from typing import Any

import datasets

from merit.branches.spec import BranchSpec
from merit.data.example import IGNORED
from merit.data.store import IMAGES, EncodedDataset
from merit.io import inside
from merit.run.layout import RunDir


def branch_rows(run: RunDir, spec: BranchSpec) -> Any:
    """A `datasets.Dataset` of `input_ids` and `labels`, one epoch of the branch, weights applied.

    Raises:
        InputError: a file of encoded examples is missing or damaged.
    """
    parts = []
    for item in spec.data:
        encoded = EncodedDataset.open(inside(run.root, item.data))
        rows = encoded.weighted_train(item.weight, spec.seed)
        wanted = [name for name in ("input_ids", "labels", IMAGES) if name in encoded.table.column_names]
        table = datasets.Dataset(encoded.table.select(wanted))
        parts.append(table.select(rows))
    return datasets.concatenate_datasets(parts)


def row_without_loss(rows: Any) -> Any:
    """One more row, which several processes need to fill their last micro-batches (StepSampler)."""
    row: dict[str, Any] = {name: [None] for name in rows.column_names}
    row |= {"input_ids": [[0, 0]], "labels": [[IGNORED, IGNORED]]}
    return datasets.Dataset.from_dict(row, features=rows.features)
