"""`single`: one group. Its only branch is joint training."""

from __future__ import annotations

from merit.split.partition import Partition
from merit.split.splitter import SplitRequest, Splitter


def _partition(request: SplitRequest) -> Partition:
    """Everything in one group, in the mixture's order."""
    return request.partition([list(request.tokens)])


SPLITTER = Splitter(
    label="joint training",
    how="into one group, which is joint training",
    partition=_partition,
    role="control",
    whole_mixture=True,
    one_group=True,
)
