"""`actmat_norms`: actmat_embedding, and norm weights by the same equation, number by number.

A norm's weight g multiplies its inputs one by one: it is a linear layer with a diagonal matrix. So is its covariance:

    δ = (Σ δ_k³ + μ δ̄) / (Σ δ_k² + μ),   μ = ridge × the mean of Σ δ_k²

Biases, and all tensors of more than two dimensions, are averaged by tokens.
"""

from __future__ import annotations

import torch
from merit_ext.rules import actmat_embedding

from merit.merge.rule import MergeRule
from merit.merge.rules import actmat


def other(of):
    """The merged step of a tensor that is no linear layer's weight."""
    if len(of.shape) != 1 or of.name.endswith("bias"):
        return actmat_embedding.other(of)
    steps = torch.stack(of.steps)
    total = steps.square().sum(0)
    level = of.ridge * total.mean()
    return of.mean if level == 0 else (steps.pow(3).sum(0) + level * of.mean) / (total + level)


RULE = MergeRule(
    label="actmat merge with embeddings and norms",
    how="with linear layers, embeddings and norms solved for the directions that each branch has learned in",
    layer=actmat.solve,
    tensor=other,
)
