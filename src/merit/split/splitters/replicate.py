"""`replicate`: every branch gets the whole mixture, and its own training seed. Merged, this is a uniform soup."""

from __future__ import annotations

from merit.split.partition import Partition
from merit.split.splitter import SplitRequest, Splitter


def _partition(request: SplitRequest) -> Partition:
    """K = 2^r groups, each with all datasets, in the mixture's order."""
    return request.partition([list(request.tokens)] * 2**request.r)


SPLITTER = Splitter(
    label="uniform soup",
    how="into copies: every branch has the whole mixture, and a seed of its own (merged, a uniform soup)",
    partition=_partition,
    role="control",
    whole_mixture=True,
)
