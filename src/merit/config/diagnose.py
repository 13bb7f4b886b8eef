"""Section `diagnose`: what is looked at in θ0, branches and merge after training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from merit.config.checks import CheckName
from merit.config.section import Section

Sigma = Annotated[float, Field(ge=0, le=1)]


class DiagnoseConfig(Section):
    """Checks of the basin and the theory: `merit run` makes those listed, `merit diagnose` all if none is."""

    checks: list[CheckName] = Field(default_factory=list, description="What `merit run` checks after `evaluate`.")
    examples: int = Field(default=16, ge=2, description="Held-out examples a dataset, and as many training examples.")
    points: int = Field(default=11, ge=3, le=101, description="Points on each segment, ends included.")
    noise: list[Sigma] = Field(
        default_factory=lambda: [0.0, 0.01, 0.05, 0.1],
        min_length=2,
        description="Levels σ of filter-normalised weight noise; 0 is always measured.",
    )
    noise_seeds: int = Field(default=3, ge=1, le=100, description="Draws of the noise at each level.")
    matrix: Literal["hessian", "gauss_newton"] = Field(
        default="hessian",
        description="Whose eigenpairs: the Hessian's, or those of its Gauss–Newton part (the Fisher matrix), which has "
        "no negative eigenvalues.",
    )
    eigenpairs: int = Field(default=10, ge=1, le=100, description="Hessian eigenpairs at θ0.")
    lanczos_steps: int = Field(
        default=30,
        ge=2,
        le=1000,
        description="Hessian-vector products at most; each keeps 4 bytes a parameter on disk.",
    )
    probes: int = Field(default=8, ge=2, le=1000, description="Random probes of the Hessian's trace.")
    hessian_tokens: int = Field(default=4096, ge=1, description="Tokens of training examples that the Hessian is of.")
    hessian_batch_tokens: int = Field(default=1024, ge=1, description="Tokens of one pass for the Hessian.")
    grid: int = Field(default=9, ge=3, le=51, description="Points a side of the loss landscape.")
