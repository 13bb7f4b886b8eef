"""`uniform`: equal weights."""

from __future__ import annotations

from merit.merge.rule import Branches, MergeRule
from merit.merge.weights import uniform_weights


def _weights(branches: Branches) -> list[float]:
    return uniform_weights(len(branches.folders))


RULE = MergeRule(label="uniform average", how="with equal weights", weights=_weights, needs_tokens=False)
