"""A quadratic basin L(θ) = L0 + bᵀδ + ½ δᵀHδ with δ = θ − θ0, and Theorem 1 in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merit.theory.findings import IdentityCheck

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """A loss around θ0. `hessian` is (d, d) and symmetric, `slope` (d,) the gradient at θ0."""

    hessian: Matrix
    slope: Vector
    constant: float = 0.0

    def loss(self, delta: Matrix) -> Vector:
        """(n,) losses at θ0 + δ for rows δ of (n, d); (1, d) makes a single one."""
        found: Vector = self.constant + delta @ self.slope + 0.5 * np.einsum("nd,nd->n", delta @ self.hessian, delta)
        return found


def spectrum(size: int, *, largest: float = 1.0, condition: float = 1e3) -> Vector:
    """(size,) eigenvalues falling geometrically from `largest` to `largest / condition`."""
    return np.geomspace(largest, largest / condition, size)


def rotation(size: int, rng: np.random.Generator) -> Matrix:
    """(size, size) orthogonal matrix, uniformly random."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    found: Matrix = q * np.sign(np.diag(r))
    return found


def measured_gain(task: Quadratic, deltas: Matrix, weights: Vector) -> float:
    """Σ_i w_i L(θ_i) − L(θ̄), the left side of Theorem 1, from losses alone. `deltas` is (K, d), `weights` sum to 1."""
    merged = weights @ deltas
    return float(weights @ task.loss(deltas) - task.loss(merged[None, :])[0])


def predicted_gain(values: Vector, vectors: Matrix, deltas: Matrix, weights: Vector) -> float:
    """½ Σ_ℓ λ_ℓ Var_w(u_ℓᵀδ), the right side of Theorem 1.

    Args:
        values: (k,) eigenvalues λ.
        vectors: (d, k) eigenvectors u as columns.
        deltas: (K, d).
        weights: (K,), sum 1.
    """
    return gain_of_projections(values, deltas @ vectors, weights)


def gain_of_projections(values: Vector, projections: Matrix, weights: Vector) -> float:
    """The same from the projections u_ℓᵀδ_i, (K, k)."""
    centred = projections - weights @ projections
    return float(0.5 * (weights @ centred**2) @ values)


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
