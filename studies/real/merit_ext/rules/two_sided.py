"""`two_sided`: every linear layer solved for what each branch has learned from and written to; no data.

K-FAC takes a linear layer's curvature for A ⊗ B: A is the covariance of its inputs, B that of the gradients of its
outputs. MaTS (arXiv 2312.04339) measures both on data and merges so that no branch is missed by much:
Σ_k B_k (W − W_k) A_k = 0. Here both come from the branches' steps Δ_k = W_k − W_0, as in `actmat`, which is the case
B_k = I:

    A_k = (Δ_kᵀ Δ_k)^½,   B_k = (Δ_k Δ_kᵀ)^½,   Σ_k B_k (Δ − Δ_k) A_k + μ (Δ − Δ̄) = 0

The powers are Shampoo's (arXiv 1802.09568): the product of both has the scale of Δ_kᵀ Δ_k, so no branch counts more
than in `actmat`. Δ̄ is the average by tokens, and μ = ridge × Σ tr A_k tr B_k / (m n), the mean diagonal of the system.

There is no closed form for more than two branches. Conjugate gradients run in the axes of Σ A_k and Σ B_k, where the
system is nearly diagonal, and start from Δ̄. Outputs × inputs are m × n; memory is some 3 K matrices of that size, and K
squares of the smaller of m and K n.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, qr, svd
from scipy.sparse.linalg import LinearOperator, cg

from merit.merge.rule import MergeRule

ITERATIONS = 50  # at most; what they have reached by then lies between the average and the solution
TOLERANCE = 1e-5  # of the residual, relative to the right-hand side


def solve(of):
    """The merged step of one linear layer."""
    outputs, inputs = of.size
    branches = [svd(of.step(k), full_matrices=False) for k in range(len(of.shares))]
    level = of.ridge * sum(s.sum() ** 2 for _, s, _ in branches) / (outputs * inputs)
    if level == 0:
        return lambda first, last: np.zeros((last - first, inputs))
    left = axes([u * np.sqrt(s) for u, s, _ in branches])
    right = axes([vt.T * np.sqrt(s) for _, s, vt in branches])
    mean = np.zeros((left.shape[1], right.shape[1]))
    pulled, diagonal = np.zeros_like(mean), np.full_like(mean, level)
    pairs = []
    for share, (u, s, vt) in zip(of.shares, branches, strict=True):
        u, v = left.T @ u, right.T @ vt.T
        mean += share * (u * s) @ v.T
        pulled += (u * s**3) @ v.T  # B_k Δ_k A_k
        b, a = (u * s) @ u.T, (v * s) @ v.T
        diagonal += np.outer(b.diagonal(), a.diagonal())
        pairs.append((b, a))
    pulled += level * mean

    def curvature(x):
        x = x.reshape(mean.shape)
        return sum((b @ x @ a for b, a in pairs), level * x).ravel()

    size = (mean.size, mean.size)
    system = LinearOperator(size, curvature, dtype=np.float64)
    nearly = LinearOperator(size, lambda x: x / diagonal.ravel(), dtype=np.float64)
    found, _ = cg(system, pulled.ravel(), mean.ravel(), rtol=TOLERANCE, maxiter=ITERATIONS, M=nearly)
    turned = found.reshape(mean.shape) @ right.T
    return lambda first, last: left[first:last] @ turned


def axes(parts):
    """Orthonormal axes (columns) of Σ_k P_k P_kᵀ; only those that the parts span."""
    stacked = np.concatenate(parts, axis=1)
    if len(stacked) <= stacked.shape[1]:
        return eigh(stacked @ stacked.T)[1]
    basis, stacked = qr(stacked, mode="economic")
    return basis @ eigh(stacked @ stacked.T)[1]


RULE = MergeRule(
    label="two-sided merge",
    how="with every linear layer solved for what each branch has learned from and written to",
    layer=solve,
)
