"""`tokens`: w_k ∝ supervised tokens really trained on (published)."""

from __future__ import annotations

from merit.merge.rule import MergeRule, by_tokens

RULE = MergeRule(label="token average", how="by the supervised tokens that each was trained on", weights=by_tokens)
