"""Uncertainty: means over datasets with standard errors over examples, and the one rule of what they can tell.

The rule: an interval is value ± t · SE at the level of 95%, and a difference counts where its interval excludes zero.
t has the degrees of freedom with which SE is known: infinitely many for an error over held-out examples (t = 1.96),
which there are enough of for the normal law; the seeds' or Satterthwaite's for an error that a study estimates from a
few seeds. Verdict, whiskers, comparison and study all say "better" by this rule, so no two pages of a report disagree
on a difference that lies between 1.96 and 2 standard errors.

Two models that saw the same examples are compared example by example: the noise that both share cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from merit.evaluate.scores import DatasetScore

LEVEL = 0.95


def half_width(error: float, freedom: float = math.inf) -> float:
    """Half the width of the 95% interval of a value with this standard error, known with `freedom` degrees."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * error


def told_apart(value: float, error: float) -> int:
    """−1 or 1, the sign of a value whose 95% interval excludes zero, else 0."""
    return 0 if abs(value) <= half_width(error) else 1 if value > 0 else -1


def p_value(value: float, error: float, freedom: float) -> float:
    """Two-sided p of the value being 0."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(value) / error))


def mean_loss(scores: Sequence[DatasetScore]) -> tuple[float, float | None]:
    """Unweighted mean over datasets of their token-weighted losses, and its standard error over examples."""
    parts = [_ratio(np.asarray(score.losses), np.asarray(score.tokens)) for score in scores]
    return _combine(parts)


def mean_difference(a: Sequence[DatasetScore], b: Sequence[DatasetScore]) -> tuple[float, float | None]:
    """The same for a − b, example by example: the noise that both models share cancels."""
    parts = []
    for left, right in zip(a, b, strict=True):
        difference = np.asarray(left.losses) - np.asarray(right.losses)
        parts.append(_ratio(difference, np.asarray(left.tokens)))
    return _combine(parts)


def mean_exact(scores: Sequence[DatasetScore]) -> tuple[float | None, float | None]:
    """Unweighted mean over the scored datasets of their mean score, and its standard error over examples.

    None, None where nothing was scored. Where every answer of a dataset scores the same, for every dataset, nothing
    varies that an error could be estimated from: it is None, not zero.
    """
    parts = [_ratio(np.asarray(score.exact), np.ones(len(score.exact))) for score in scores if score.exact]
    return _known(parts)


def exact_difference(a: Sequence[DatasetScore], b: Sequence[DatasetScore]) -> tuple[float | None, float | None]:
    """The same for a − b, answer by answer, over the datasets that both were scored on."""
    parts = [
        _ratio(np.asarray(left.exact) - np.asarray(right.exact), np.ones(len(left.exact)))
        for left, right in zip(a, b, strict=True)
        if left.exact and right.exact and len(left.exact) == len(right.exact)
    ]
    return _known(parts)


def _known(parts: Sequence[tuple[float, float | None]]) -> tuple[float | None, float | None]:
    if not parts:
        return None, None
    mean, error = _combine(parts)
    return mean, error or None


def _ratio(values: np.ndarray, weights: np.ndarray) -> tuple[float, float | None]:
    """Weighted mean Σ w x / Σ w and its standard error by linearisation, since examples differ in length."""
    mean = float((values * weights).sum() / weights.sum())
    if len(values) < 2:
        return mean, None
    residuals = weights * (values - mean) / weights.mean()
    return mean, float(residuals.std(ddof=1) / math.sqrt(len(values)))


def _combine(parts: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """Mean and its error; a dataset of one example has no error of its own and is given the others' mean variance."""
    mean = sum(part[0] for part in parts) / len(parts)
    known = [part[1] for part in parts if part[1] is not None]
    if not known:
        return mean, None
    variance = sum(error**2 for error in known) / len(known)
    return mean, math.sqrt(variance / len(parts))
