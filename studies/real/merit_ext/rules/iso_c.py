"""`iso_c`: the sum of the branches' steps with all singular values made equal (Iso-C); no data.

Marczak et al., arXiv 2502.04959. Of a linear layer's Σ_k Δ_k = U S Vᵀ, m × n, with Δ_k = W_k − W_0:

    Δ = s̄ U Vᵀ,   s̄ = the mean of all min(m, n) singular values

Directions in which no branch has moved stay as they are. This is a sum, not an average. Everything that is no linear
layer is averaged by tokens. Branches count alike; the paper scales the whole step by one number that it chooses on
validation examples (`scales` here).
"""

from __future__ import annotations

from scipy.linalg import svd

from merit.merge.rule import MergeRule

_NULL = 1e-8  # singular values below this share of the largest are rounding errors


def solve(of):
    """The merged step of one linear layer."""
    total = of.step(0)
    for k in range(1, len(of.shares)):
        total += of.step(k)
    u, s, vt = svd(total, full_matrices=False)
    real = s > _NULL * s[0]
    left, right = u[:, real] * s.mean(), vt[real]
    return lambda first, last: left[first:last] @ right


RULE = MergeRule(
    label="Iso-C merge",
    how="with the sum of every linear layer's steps spread evenly over its singular directions",
    layer=solve,
)
