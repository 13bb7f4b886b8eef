"""Quadratic losses L(θ) = L0 + bᵀδ + ½ δᵀHδ with δ = θ − θ0: Theorem 1's two sides, and datasets that disagree.

Dataset t has L_t(θ) = ½ (δ − c_t)ᵀ H_t (δ − c_t), so its gradient at θ0 is −H_t c_t. The mixture's loss is Σ_t w_t L_t.
Groups of datasets are trained by gradient descent, in closed form. Whether all H_t are one H decides what a split can
change: see `merit.theory.splits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True)
class Tasks:
    """T datasets in d dimensions."""

    hessians: NDArray[np.float64]  # (T, d, d)
    optima: Matrix  # (T, d): c_t
    tokens: NDArray[np.int64]  # (T,)

    @property
    def weights(self) -> Vector:
        """(T,): w_t, sum 1."""
        found: Vector = self.tokens / self.tokens.sum()
        return found

    @property
    def gradients(self) -> Matrix:
        """(T, d): ∇L_t(θ0)."""
        found: Matrix = -np.einsum("tij,tj->ti", self.hessians, self.optima)
        return found

    def pooled(self, members: Sequence[int] | None = None) -> Quadratic:
        """The token-weighted loss of a group, or of the whole mixture."""
        index = list(range(len(self.tokens))) if members is None else list(members)
        w = self.tokens[index] / self.tokens[index].sum()
        hessian = np.einsum("t,tij->ij", w, self.hessians[index])
        slope = w @ self.gradients[index]
        constant = 0.5 * float(
            w @ np.einsum("ti,tij,tj->t", self.optima[index], self.hessians[index], self.optima[index])
        )
        return Quadratic(hessian, slope, constant)

    def train(self, members: Sequence[int] | None, *, rate: float, steps: float) -> Vector:
        """(d,): δ after `steps` steps of gradient descent on a group, δ = −Σ_ℓ (1 − (1 − ηλ_ℓ)^τ)/λ_ℓ · u_ℓ u_ℓᵀ g."""
        task = self.pooled(members)
        values, vectors = np.linalg.eigh(task.hessian)
        moved = progress(values, rate=rate, steps=steps)
        safe = np.where(values > 0, values, 1.0)
        factor = np.where(values > 0, moved / safe, rate * steps)
        found: Vector = -vectors @ (factor * (vectors.T @ task.slope))
        return found


def progress(values: Vector, *, rate: float, steps: float) -> Vector:
    """1 − (1 − ηλ)^τ: the share of the way to the optimum that gradient descent has gone along each eigenvector.

    Computed without cancellation for small ητλ. Needs ηλ < 1.
    """
    found: Vector = -np.expm1(steps * np.log1p(-rate * values))
    return found


def random_tasks(
    rng: np.random.Generator,
    *,
    datasets: int = 12,
    size: int = 24,
    condition: float = 1e3,
    conflict: float = 1.0,
    factors: int = 3,
    own_curvature: float = 0.0,
) -> Tasks:
    """Datasets with a common optimum of norm 1 and a conflict of norm about `conflict` around it.

    Args:
        factors: latent directions that most of the conflict lies in, in random orientation to the spectrum.
        own_curvature: 0 gives every dataset the same H; larger values turn and stretch each dataset's own.
    """
    values = spectrum(size, condition=condition)
    turn = rotation(size, rng)
    hessians = np.empty((datasets, size, size))
    for t in range(datasets):
        own = turn
        stretched = values
        if own_curvature:
            own = (
                turn @ np.linalg.qr(np.eye(size) + own_curvature * rng.standard_normal((size, size)) / np.sqrt(size))[0]
            )
            stretched = values * np.exp(own_curvature * rng.standard_normal(size))
        hessians[t] = (own * stretched) @ own.T
    common = rng.standard_normal(size) / np.sqrt(size)
    latent = rng.standard_normal((datasets, factors)) @ rng.standard_normal((factors, size))
    spread = latent / np.sqrt(factors * size) + 0.5 * rng.standard_normal((datasets, size)) / np.sqrt(size)
    tokens = np.maximum(1, (1e4 * np.exp(0.5 * rng.standard_normal(datasets))).astype(np.int64))
    return Tasks(hessians, common + conflict * spread, tokens)
