"""`tokens`: w_k ∝ supervised tokens really trained on (published)."""

from __future__ import annotations

from merit.merge.rule import Branches, MergeRule, token_weights


def _weights(branches: Branches) -> list[float]:
    return token_weights(branches.tokens)


RULE = MergeRule(label="token average", how="by the supervised tokens that each was trained on", weights=_weights)
