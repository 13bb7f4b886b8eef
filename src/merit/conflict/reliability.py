"""How far the cosines can be trusted, from the two half-set means that every dataset's sketch holds anyway.

A mean over a few hundred examples is signal plus noise, and the noise of different datasets is independent. So
⟨g_i, g_j⟩ (i ≠ j) and ⟨half 0 of i, half 1 of i⟩ are unbiased, while ‖g_i‖² is too large, which pulls every cosine
toward 0, and unevenly. All figures here undo or measure that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from merit.conflict.records import AxesResult
from merit.conflict.similarity import HalfGram, Matrix

Vector = NDArray[np.float64]


def half_cosines(gram: HalfGram) -> Vector:
    """(T,): cosine between the two half-set means of each dataset; NaN where a half is empty."""
    own = np.einsum("ihik->ihk", gram.products)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: Vector = own[:, 0, 1] / np.sqrt(own[:, 0, 0] * own[:, 1, 1])
    return np.where(gram.tokens.min(1) > 0, cosines, np.nan)


def reliability(gram: HalfGram) -> Vector:
    """(T,): Spearman–Brown 2c / (1 + c) of the half-set cosine c: what share of ‖g‖² is signal. In 0..1, or NaN."""
    half = np.maximum(half_cosines(gram), 0)
    corrected: Vector = 2 * half / (1 + half)
    return corrected


def disattenuated(gram: HalfGram, cosines: Matrix) -> Matrix:
    """(T, T): `cosines` as between the *true* mean gradients: cos_ij / √(rel_i rel_j), clipped to ±1; unit diagonal.

    NaN where a reliability is zero or unknown. Less biased and more variable than the plain cosines.
    """
    rel = reliability(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.clip(cosines / np.sqrt(np.outer(rel, rel)), -1, 1)
    result[~(rel > 0), :] = np.nan
    result[:, ~(rel > 0)] = np.nan
    np.fill_diagonal(result, 1.0)
    return result


def noise(gram: HalfGram) -> Vector:
    """(T,): s_i, such that the standard error of cos_ij is √(s_i² + s_j²); NaN where a half is empty.

    The noise of the mean g_i is estimated by d_i = (half mean 0 − half mean 1) √(n₀ n₁) / n, which has its covariance.
    To first order cos_ij moves by d_i's part across g_i along g_j's direction, d_i·(û_j − cos_ij û_i) / ‖g_i‖. One
    difference gives one draw a pair, so s_i² is the mean of its square over all j ≠ i.
    """
    count = len(gram.names)
    if count < 2:
        return np.full(count, np.nan)
    shift = _shifts(gram)
    np.fill_diagonal(shift, 0)
    s = np.sqrt((shift**2).sum(1) / (count - 1))
    return np.where(gram.tokens.min(1) > 0, s, np.nan)


def score_noise(gram: HalfGram, axes: AxesResult) -> Matrix:
    """(T, axes kept): standard errors of the scores; NaN where a half is empty.

    Axis k is the unit direction w_k = Σ_j U_jk û_j / √λ_k, so d_i moves score i by its part along w_k. One difference
    gives one draw a dataset and axis; the estimate is the product model s_ik² = (mean over k)_i (mean over i)_k / mean.
    """
    scores = np.array(axes.scores)
    values = np.maximum(np.array(axes.eigenvalues[: scores.shape[1]]), 1e-12)
    draws = (_shifts(gram) @ (scores / values)) ** 2  # U √λ / λ = U / √λ
    known = gram.tokens.min(1) > 0
    by_axis = draws[known].mean(0) if known.any() else draws.mean(0) * np.nan
    s: Matrix = np.sqrt(np.outer(draws.mean(1), by_axis) / max(float(by_axis.mean()), 1e-300))
    s[~known] = np.nan
    return s


def _shifts(gram: HalfGram) -> Matrix:
    """(T, T): how far noise like that of g_i moves û_i along û_j, d_i·(û_j − cos_ij û_i) / ‖g_i‖."""
    n = gram.tokens.astype(np.float64)
    total = n.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.sqrt(n[:, 0] * n[:, 1]) / total
        difference = np.stack([weight / n[:, 0], -weight / n[:, 1]], axis=1)
    mean = np.repeat(1 / total[:, None], 2, axis=1)
    along = gram.combine(np.nan_to_num(difference, posinf=0, neginf=0), mean)  # d_i · g_j
    unit = along / gram.norms[None, :]
    shifts: Matrix = (unit - gram.cosines * np.diag(unit)[:, None]) / gram.norms[:, None]
    return shifts
