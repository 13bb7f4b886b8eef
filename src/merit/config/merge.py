"""Section `merge`: how branches become one model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from merit.config.section import Section

# What the merge takes where nothing else is said: in a run, in `merit merge A B C` and from Python.
SHARD_BYTES = 5_000_000_000
MEMORY_BYTES = 512_000_000  # of all buffers together
CURVATURE_BATCH_TOKENS = 4096
RIDGE = {"fisher": 0.1, "regmean": 0.01}  # what validation chose most often in docs/study.md

DtypeName = Literal["input", "float32", "bfloat16", "float16"]
Scale = Annotated[float, Field(gt=0, le=10)]


class MergeConfig(Section):
    """The weighted average, and points on its ray θ0 + β(θ̄ − θ0)."""

    weights: Literal["tokens", "uniform", "fisher", "regmean"] = Field(
        default="tokens",
        description="w_k ∝ supervised tokens really trained on (published), or equal; or by curvature, measured on the "
        "branches' data after their training: diagonal Fisher, or input Grams of linear layers (RegMean).",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Pull toward the token average (fisher, regmean), relative to the mean curvature of a tensor. "
        "Default: 0.1 for fisher, 0.01 for regmean.",
    )
    curvature_examples: int = Field(
        default=64, ge=2, description="Training examples of each branch that its curvature is of (fisher, regmean)."
    )
    dtype: DtypeName = Field(
        default="input", description="Type of the merged weights; `input` keeps the branches' own."
    )
    scales: list[Scale] = Field(
        default_factory=lambda: [1.0], min_length=1, description="The β of each model written; 1 is the merge itself."
    )
    shard_bytes: int = Field(default=SHARD_BYTES, ge=1_000_000, description="Largest safetensors shard, in bytes.")
