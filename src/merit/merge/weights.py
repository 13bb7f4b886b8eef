"""What each branch weighs in a merge. Weights are relative numbers, one an input; the merge divides by their sum, once,
at the end. They stay unnormalised on purpose. θ̄ = Σ n_k θ_k / Σ n_k with whole n_k (tokens, or ones) has sums that
float64 mostly holds exactly, so a mean half-way between two bfloat16 values stays there and rounds to the even one;
with n_k / Σ n_k as factors it would fall to either side at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from merit.base.errors import InputError


def token_weights(tokens: Sequence[int]) -> list[float]:
    """w_k ∝ supervised tokens of branch k (method.md, step 4).

    Raises:
        InputError: a count is negative, or all are zero.
    """
    return check_weights([float(count) for count in tokens], len(tokens))


def uniform_weights(k: int) -> list[float]:
    """Equal weights for `k` inputs: a uniform soup."""
    return [1.0] * k


def check_weights(weights: Sequence[float], inputs: int) -> list[float]:
    """The weights as floats, when they can weigh `inputs` inputs.

    Raises:
        InputError: too many or few; negative, NaN or infinite; all zero.
    """
    if inputs == 0:
        raise InputError("nothing to merge: there are no inputs", field="weights")
    if len(weights) != inputs:
        raise InputError(f"{len(weights)} weights for {inputs} inputs; give one for each input", field="weights")
    for index, weight in enumerate(weights):
        if not math.isfinite(weight):
            raise InputError(f"{weight} is not a finite number", field=f"weights[{index}]")
        if weight < 0:
            raise InputError(f"{weight:g} is negative; a merge averages", field=f"weights[{index}]")
    total = math.fsum(weights)
    if not 0 < total < math.inf:
        raise InputError("the weights sum to 0" if total == 0 else "the weights are too large", field="weights")
    return [float(weight) for weight in weights]


def exact_factors(weights: Sequence[float]) -> list[float]:
    """Equal weights become ones: their sums are the plainest, and one input alone stays what it is."""
    return [1.0] * len(weights) if len(set(weights)) == 1 else list(weights)


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum, as they are reported."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]
