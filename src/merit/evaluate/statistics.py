"""Means over datasets, with standard errors over examples, paired where two models saw the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from merit.evaluate.scores import DatasetScore


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
