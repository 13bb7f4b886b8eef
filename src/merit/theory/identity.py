"""Theorem 1 as an identity: Σ w_i L(θ_i) − L(θ̄) = ½ Σ_ℓ λ_ℓ Var_w(u_ℓᵀδ)."""

from __future__ import annotations

import numpy as np

from merit.theory.quadratic import Quadratic, measured_gain, predicted_gain, rotation, spectrum
from merit.theory.result import IdentityCheck


def check_identity(
    rng: np.random.Generator, *, instances: int = 50, size: int = 32, branches: int = 4
) -> IdentityCheck:
    """Left side from losses of a dense H, right side from its eigenpairs; any branches, weights, slope and H.

    The identity needs nothing but a quadratic loss; that the gain is never negative needs H ⪰ 0.
    """
    worst = 0.0
    negative = 0
    for _ in range(instances):
        values = spectrum(size, condition=float(10 ** rng.uniform(0, 6)))
        turn = rotation(size, rng)
        hessian = (turn * values) @ turn.T
        task = Quadratic((hessian + hessian.T) / 2, rng.standard_normal(size), float(rng.standard_normal()))
        deltas = rng.standard_normal((branches, size))
        weights = rng.dirichlet(np.ones(branches))
        right = predicted_gain(*np.linalg.eigh(task.hessian), deltas, weights)
        worst = max(worst, abs(measured_gain(task, deltas, weights) - right) / right)
        signs = np.where(np.arange(size) < size // 2, -1.0, 1.0)
        indefinite = Quadratic((turn * (values * signs)) @ turn.T, task.slope)
        negative += measured_gain(indefinite, deltas, weights) < 0
    return IdentityCheck(instances=instances, largest_error=worst, negative_with_indefinite=int(negative))
