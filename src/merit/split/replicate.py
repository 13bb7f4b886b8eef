"""`replicate`: every branch gets the whole mixture, and its own training seed. Merged, this is a uniform soup."""

from __future__ import annotations

from collections.abc import Mapping

from merit.split.partition import Group, Partition


def replicate_partition(tokens: Mapping[str, int], *, r: int) -> Partition:
    """K = 2^r groups, each with all datasets, in the mixture's order."""
    group = Group(datasets=list(tokens), tokens=sum(tokens.values()))
    return Partition(splitter="replicate", groups=[group] * 2**r, scores={}, cuts=[])
