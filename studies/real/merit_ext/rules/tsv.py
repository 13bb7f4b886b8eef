"""`tsv`: the largest singular directions of every branch's step, made orthogonal and summed (TSV-M); no data.

Gargiulo et al., arXiv 2412.00081. Of Δ_k = W_k − W_0 = U_k S_k V_kᵀ of a linear layer, m × n, each of K branches keeps
its largest min(m, n) / K directions (rounded down, one at least). Stacked, they are replaced by the nearest orthonormal
ones, so that no branch writes into the directions of another:

    Δ = U⊥ S V⊥ᵀ,   U⊥ = U (Uᵀ U)^(-½) of U = [U_1 … U_K], V⊥ likewise, S = diag(S_1, …, S_K)

This is a sum, not an average. Everything that is no linear layer is averaged by tokens. Branches count alike; the paper
scales the whole step by one number that it chooses on validation examples (`scales` here).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import svd

from merit.merge.rule import MergeRule

_NULL = 1e-8  # singular values below this share of the largest are rounding errors


def solve(of):
    """The merged step of one linear layer."""
    count = len(of.shares)
    keep = max(1, min(of.size) // count)
    kept = []
    for k in range(count):
        u, s, vt = svd(of.step(k), full_matrices=False)
        real = np.count_nonzero(s[:keep] > _NULL * s[0])  # a step of low rank has no further directions
        kept.append((u[:, :real], s[:real], vt[:real].T))
    lefts, sizes, rights = zip(*kept, strict=True)
    left = orthonormal(np.concatenate(lefts, axis=1)) * np.concatenate(sizes)
    right = orthonormal(np.concatenate(rights, axis=1)).T
    return lambda first, last: left[first:last] @ right


def orthonormal(columns):
    """The nearest matrix with orthonormal columns; where branches are alike, so on the span of all columns alone."""
    u, s, vt = svd(columns, full_matrices=False)
    real = s > _NULL * s.max(initial=0)
    return u[:, real] @ vt[real]


RULE = MergeRule(
    label="TSV merge",
    how="with the largest singular directions of every linear layer's steps made orthogonal and summed",
    layer=solve,
)
