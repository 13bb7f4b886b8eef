"""Section `diagnose`: what is looked at in θ0, branches and merge after training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from merit.config.checks import CheckName
from merit.config.section import Section

Sigma = Annotated[float, Field(ge=0, le=1)]


class DiagnoseConfig(Section):
    """Checks of the basin and the theory: `merit run` runs those listed, `merit diagnose` all if none is."""

    checks: list[CheckName] = Field(default_factory=list, description="Checks that `merit run` runs after `evaluate`.")
    examples: int = Field(default=16, ge=2, description="Held-out examples per dataset, and as many training examples.")
    points: int = Field(default=11, ge=3, le=101, description="Points on each line between two models, ends included.")
    noise: list[Sigma] = Field(
        default_factory=lambda: [0.0, 0.01, 0.05, 0.1],
        min_length=2,
        description="Levels σ of filter-normalised weight noise; 0 is always added.",
    )
    noise_seeds: int = Field(default=3, ge=1, le=100, description="Random draws at each noise level.")
    matrix: Literal["hessian", "gauss_newton"] = Field(
        default="hessian",
        description="Matrix of the eigenpairs: the Hessian, or its Gauss–Newton part (the Fisher matrix), which has no "
        "negative eigenvalues.",
    )
    eigenpairs: int = Field(default=10, ge=1, le=100, description="Hessian eigenpairs at θ0.")
    lanczos_steps: int = Field(
        default=30,
        ge=2,
        le=1000,
        description="Most Hessian-vector products; each takes 4 bytes per parameter on disk.",
    )
    probes: int = Field(default=8, ge=2, le=1000, description="Random probes of the Hessian's trace.")
    hessian_tokens: int = Field(default=4096, ge=1, description="Training tokens that the Hessian is computed on.")
    hessian_batch_tokens: int = Field(default=1024, ge=1, description="Tokens per pass for the Hessian.")
    grid: int = Field(default=9, ge=3, le=51, description="Points per side of the loss landscape.")
