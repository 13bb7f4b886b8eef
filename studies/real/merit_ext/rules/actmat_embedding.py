"""`actmat_embedding`: actmat, and embeddings by the same equation.

`actmat` averages every matrix that is no linear layer of its own. A head that is tied to the embeddings is one in use:
its logits are E x, so Δ_kᵀ Δ_k of the embeddings (tokens × d) is the d × d covariance of the inputs x of the head, as
for any layer. Every other matrix that is no linear layer gets the same: embeddings that are not tied, too, of which one
can say it only by analogy. All else is averaged by tokens.

    Δ = (Σ Δ_k C_k + μ Δ̄) (Σ C_k + μ I)⁻¹,   C_k = Δ_kᵀ Δ_k,   μ = ridge × the mean diagonal of Σ C_k

Memory is four matrices of the embeddings' size.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solve

from merit.merge.rule import MergeRule
from merit.merge.rules import actmat


def other(of):
    """The merged step of a tensor that is no linear layer's weight."""
    return of.mean if len(of.shape) != 2 else torch.from_numpy(matrix(of))


def matrix(of):
    """The equation, for one matrix (tokens × d)."""
    total = np.zeros((of.size[1], of.size[1]))
    pulled, mean = np.zeros(of.size), np.zeros(of.size)
    for k, share in enumerate(of.shares):
        step = of.step(k)
        covariance = step.T @ step
        total += covariance
        pulled += step @ covariance
        mean += share * step
    level = of.ridge * np.trace(total) / len(total)
    if level == 0:
        return mean
    pulled += level * mean
    return solve(total + level * np.eye(len(total)), pulled.T, assume_a="pos").T


RULE = MergeRule(
    label="actmat merge with embeddings",
    how="with every linear layer and the embeddings solved for the directions that each branch has learned in",
    layer=actmat.solve,
    tensor=other,
)
