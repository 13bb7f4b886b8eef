"""`single`: one group. Its only branch is joint training."""

from __future__ import annotations

from collections.abc import Mapping

from merit.split.partition import Group, Partition


def single_partition(tokens: Mapping[str, int]) -> Partition:
    """Everything in one group, in the mixture's order."""
    group = Group(datasets=list(tokens), tokens=sum(tokens.values()))
    return Partition(splitter="single", groups=[group], scores={}, cuts=[])
