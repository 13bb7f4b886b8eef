"""Paired differences over seeds and examples: intervals, p-values, Holm's correction, effect sizes.

A difference is the mean over seeds of the mean over datasets of the token-weighted mean over examples of (loss of a −
loss of b), example by example: what both models find hard cancels.

Its variance has two parts. **Seeds**: the spread of the seeds' own differences, s²/S, which with S seeds is known with
S − 1 degrees of freedom only; a percentile bootstrap over five seeds would give intervals far too short.
**Examples**: by bootstrap, resampling the examples of every dataset (draws are weights, so all draws are one matrix
product). Where every seed draws its own examples, s²/S contains their noise already, and the larger of the two counts;
where all seeds share the same held-out examples they add up. The interval is difference ± t · SE, with S − 1 degrees
of freedom in the first case and Satterthwaite's in the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from merit.evaluation.scores import DatasetScore

Values = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval.

    Attributes:
        effect: Cohen's d over seeds, mean ÷ standard deviation of the seeds' values; None with a single seed.
        p: two-sided, of the value being 0.
        seeds: the value of each seed.
    """

    value: float
    low: float
    high: float
    error: float
    p: float
    effect: float | None
    seeds: tuple[float, ...]

    @property
    def sign(self) -> int:
        """−1 or 1 where the interval excludes zero, else 0."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def paired(
    a: Sequence[Sequence[DatasetScore]],
    b: Sequence[Sequence[DatasetScore]] | None,
    *,
    shared: bool,
    draws: int,
    seed: int,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """The difference a − b, or a's own mean without `b`.

    Args:
        a, b: seed → dataset → scores, in the same order.
        shared: whether all seeds were measured on the same examples.
        seed: of the bootstrap; all differences of a study use the same resamples, which are drawn once.
        weights: of the datasets; equal if unset.

    Raises:
        ValueError: the two were measured on different examples.
    """
    tables = [
        _table([seed[d] for seed in a], [seed[d] for seed in b] if b is not None else None) for d in range(len(a[0]))
    ]
    share = np.full(len(tables), 1 / len(tables)) if weights is None else np.asarray(weights) / sum(weights)
    seeds = np.zeros(len(a))
    parts: list[tuple[float, int]] = []  # variance over examples, and degrees of freedom, of independent parts
    for d, ((values, tokens), part) in enumerate(zip(tables, share, strict=True)):
        weighted, count = values * tokens, values.shape[1]
        seeds += part * weighted.sum(1) / tokens.sum(1)
        means = np.stack(
            [
                (picks @ weighted[s]) / (picks @ tokens[s])
                for s in range(len(a))
                for picks in [_resamples(seed, draws, count, d, 0 if shared else s)]
            ]
        )  # (seeds, draws)
        scale = (part / len(a)) ** 2 * count / max(1, count - 1)  # a bootstrap's variance is n − 1 over n too small
        if shared:
            parts.append((scale * float(means.sum(axis=0).var(ddof=1)), count - 1))
        else:
            parts += [(scale * float(row.var(ddof=1)), count - 1) for row in means]
    return combine(seeds, parts, shared=shared)


@lru_cache(maxsize=4096)
def _resamples(seed: int, draws: int, count: int, dataset: int, copy: int) -> Values:
    """(draws, count): how often each of `count` examples is drawn."""
    rng = np.random.default_rng([seed, count, dataset, copy])
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def combine(seeds: Values, examples: Sequence[tuple[float, int]], *, shared: bool) -> Estimate:
    """Value and interval from the seeds' values and the bootstrap's variances over examples."""
    count, value = len(seeds), float(np.mean(seeds))
    deviation = float(np.std(seeds, ddof=1)) if count > 1 else 0.0
    over_seeds = [(deviation**2 / count, count - 1)] if count > 1 else []
    over_examples = [(variance, freedom) for variance, freedom in examples if freedom > 0]
    if shared or not over_seeds:
        parts = over_seeds + over_examples
    else:
        # A few seeds that happen to agree do not make a claim surer than a few seeds can: S − 1 degrees, either way.
        parts = [(max(over_seeds[0][0], sum(variance for variance, _ in over_examples)), count - 1)]
    variance = sum(part for part, _ in parts)
    error = math.sqrt(variance)
    if error == 0:
        return Estimate(value, value, value, 0.0, 1.0 if value == 0 else 0.0, None, tuple(map(float, seeds)))
    # Satterthwaite: the degrees of freedom of a sum of variances, each estimated with its own.
    law = stats.t(variance**2 / sum(part**2 / freedom for part, freedom in parts))
    reach = float(law.ppf((1 + LEVEL) / 2)) * error
    effect = value / deviation if deviation > 0 else None
    p = float(2 * law.sf(abs(value) / error))
    return Estimate(value, value - reach, value + reach, error, p, effect, tuple(map(float, seeds)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: key → adjusted p, monotone and at most 1. Controls the chance of any false claim."""
    order = sorted(p, key=lambda key: (p[key], key))
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, key in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[key]))
        adjusted[key] = highest
    return adjusted


def _table(a: Sequence[DatasetScore], b: Sequence[DatasetScore] | None) -> tuple[Values, Values]:
    """(seeds, examples): values and token weights of one dataset. Seeds with more examples lose the last."""
    if b is not None and any(x.tokens != y.tokens or x.name != y.name for x, y in zip(a, b, strict=True)):
        raise ValueError("models that were measured on different examples cannot be compared")
    count = min(len(score.losses) for score in a)
    values = np.array([score.losses[:count] for score in a], dtype=np.float64)
    if b is not None:
        values = values - np.array([score.losses[:count] for score in b], dtype=np.float64)
    return values, np.array([score.tokens[:count] for score in a], dtype=np.float64)
