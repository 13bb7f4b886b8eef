"""A few of the examples that a branch was trained on: what its curvature is measured on."""

from __future__ import annotations

from pathlib import Path

from merit.branches.spec import BranchSpec
from merit.data.example import TokenRow
from merit.data.store import EncodedDataset
from merit.io import inside


def training_rows(root: Path, spec: BranchSpec, wanted: int) -> list[TokenRow]:
    """input_ids and labels, with images, of about `wanted` training examples, the branch's datasets in equal parts.

    `root` is the folder that the spec's paths are relative to.
    """
    each = -(-wanted // len(spec.data))
    found: list[TokenRow] = []
    for item in spec.data:
        stored = EncodedDataset.open(inside(root, item.data))
        rows = [stored[int(row)] for row in stored.weighted_train(item.weight, spec.seed)[:each]]
        found += [row.token_row for row in rows]
    return found
