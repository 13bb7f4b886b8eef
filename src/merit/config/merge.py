"""Section `merge`: how branches become one model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from merit.config.section import Section

DtypeName = Literal["input", "float32", "bfloat16", "float16"]
Scale = Annotated[float, Field(gt=0, le=10)]


class MergeConfig(Section):
    """The weighted average θ̄, and models θ0 + β(θ̄ − θ0)."""

    weights: Literal["tokens", "uniform", "fisher", "regmean"] = Field(
        default="tokens",
        description="`tokens`: by the supervised tokens of each branch (published); `uniform`: equally; `fisher`, "
        "`regmean`: by curvature on the branches' data (diagonal Fisher, input Grams of linear layers).",
    )
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Pull toward the token average (fisher, regmean), relative to the mean curvature of a tensor. "
        "Default: 0.1 for fisher, 0.01 for regmean.",
    )
    curvature_examples: int = Field(
        default=64, ge=2, description="Training examples used to estimate each branch's curvature (fisher, regmean)."
    )
    dtype: DtypeName = Field(
        default="input", description="Data type of the merged weights; `input` keeps that of the branches."
    )
    scales: list[Scale] = Field(
        default_factory=lambda: [1.0], min_length=1, description="Write one model for each β; 1 is the merge itself."
    )
    shard_bytes: int = Field(default=5_000_000_000, ge=1_000_000, description="Largest safetensors shard, in bytes.")
