"""Section `merge`: how branches become one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from merit.base import extensions
from merit.config.section import Section

# What the merge takes where nothing else is said: in a run, in `merit merge A B C` and from Python.
SHARD_BYTES = 5_000_000_000
MEMORY_BYTES = 512_000_000  # of all buffers together
CURVATURE_BATCH_TOKENS = 4096

DtypeName = Literal["input", "float32", "bfloat16", "float16"]
Scale = Annotated[float, Field(gt=0, le=10)]
if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[extensions.names("rules")]

PUBLISHED: RuleName = "tokens"  # the rule of the paper, which others are compared with
RIDGE = {"fisher": 0.1, "regmean": 0.01}  # what validation chose most often in docs/study.md
OTHER_RIDGE = 0.1


class MergeConfig(Section):
    """The weighted average θ̄, and models θ0 + β(θ̄ − θ0)."""

    weights: RuleName = Field(default=PUBLISHED, description=f"The merge rule. {extensions.summaries('rules')}")
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Pull toward the token average (rules by curvature), relative to the mean curvature of a tensor. "
        f"Default: {', '.join(f'{ridge:g} for {rule}' for rule, ridge in RIDGE.items())}; {OTHER_RIDGE:g} for others.",
    )
    curvature_examples: int = Field(
        default=64, ge=2, description="Training examples used to estimate each branch's curvature (rules by curvature)."
    )
    dtype: DtypeName = Field(
        default="input", description="Data type of the merged weights; `input` keeps that of the branches."
    )
    scales: list[Scale] = Field(
        default_factory=lambda: [1.0], min_length=1, description="Write one model for each β; 1 is the merge itself."
    )
    shard_bytes: int = Field(default=SHARD_BYTES, ge=1_000_000, description="Largest safetensors shard, in bytes.")

    @property
    def effective_ridge(self) -> float:
        """The ridge, or the rule's default."""
        return RIDGE.get(self.weights, OTHER_RIDGE) if self.ridge is None else self.ridge
