"""How many axes? Evidence for each further cut, from the two half-sets that are measured anyway.

A partition found on one half is judged on the other, whose noise is independent: the share of the conflict that lies
between its groups, Σ_k w_k ‖ḡ_k − ḡ‖² over Σ_i w_i ‖û_i − ū‖². By Theorem 1 the merging gain is ½ Σ_k w_k
(δ_k − δ̄)ᵀH(δ_k − δ̄); with branches that move along their mean gradient, δ_k ∝ −ḡ_k, and the identity in place of the
Hessian H, the share is that gain up to a constant. The identity is a proxy: it ranks cuts, and predicts no loss.

Every dataset counts once (w_k ∝ datasets), as it does for the axes: with token weights one large dataset would decide
alone. Cuts are at token-weighted medians all the same.

The next axis is worth its cut if it captures more than cutting the same groups at random would: 95 in 100 times. The
first axis that is not ends the count; none at all means "do not split".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.record import Record
from merit.conflict.axes import principal_axes
from merit.conflict.similarity import HalfGram
from merit.split.halves import unit_products
from merit.split.median import median_partition
from merit.split.spread import between_variance

DRAWS = 400
LEVEL = 0.05
MAX_AXES = 5


class AxisEvidence(Record):
    """One more axis. Shares are of the whole conflict, judged on the half that the axes were not found on."""

    axes: int
    groups: int
    share: float  # captured by this many axes
    random_share: float  # captured if the last cut were random: mean
    p: float  # how often a random last cut captures as much


class AxesEvidence(Record):
    """`recommended` axes, 0 for "do not split", and why."""

    recommended: int
    axes: list[AxisEvidence]
    reason: str


def most_axes(datasets: int) -> int:
    """The most axes that are judged for so many datasets."""
    return min(MAX_AXES, datasets.bit_length() - 1)


def weigh_axes(halves: HalfGram, tokens: Mapping[str, int], *, centre: bool = True) -> AxesEvidence:
    """Judges 1, 2, … axes as far as T allows.

    Args:
        halves: products of the half-set gradients.
        tokens: dataset → planned supervised tokens, which place the cuts.

    Raises:
        InputError: a dataset has a single calibration example, so there is no second half to judge on.
    """
    for name, pair in zip(halves.names, halves.tokens, strict=True):
        if pair.min() == 0:
            raise InputError("`axes: auto` needs two calibration examples a dataset", field=f"mixture.{name}")
    most = most_axes(len(halves.names))
    evidence: list[AxisEvidence] = []
    for axes in range(1, most + 1):
        found, chance = _judge(halves, tokens, axes, centre)
        p = float((1 + (chance >= found).sum()) / (1 + len(chance)))
        evidence.append(AxisEvidence(axes=axes, groups=2**axes, share=found, random_share=float(chance.mean()), p=p))
        if p > LEVEL:
            break
    recommended = sum(item.p <= LEVEL for item in evidence)
    return AxesEvidence(recommended=recommended, axes=evidence, reason=_reason(recommended, evidence))


def _judge(halves: HalfGram, tokens: Mapping[str, int], axes: int, centre: bool) -> tuple[float, NDArray[np.float64]]:
    """Share of the conflict with this many axes, and (DRAWS,) shares with a random last cut; means over the halves."""
    names = list(halves.names)
    shares = []
    chances = []
    for half in range(2):
        scores = np.array(principal_axes(names, unit_products(halves, half), axes=axes, centre=centre).scores)
        judge = unit_products(halves, 1 - half, debias=True)
        weights = [1.0] * len(names)
        total = between_variance(judge, [[i] for i in range(len(names))], weights)
        rng = np.random.default_rng(half)

        columns = [scores[:, :axes]]
        for _ in range(DRAWS):
            last = rng.standard_normal((len(names), 1))
            columns.append(np.hstack([scores[:, : axes - 1], last]))
        captured = []
        for column in columns:
            parts = median_partition("pca", dict(zip(names, column.tolist(), strict=True)), tokens, axes=axes)
            captured.append(between_variance(judge, parts.indices(names), weights) / total)
        shares.append(captured[0])
        chances.append(captured[1:])
    return float(np.mean(shares)), np.mean(chances, axis=0)


def _reason(recommended: int, evidence: list[AxisEvidence]) -> str:
    def figures(item: AxisEvidence) -> str:
        return f"{item.share:.0%} of the conflict, {item.random_share:.0%} with a random cut, p = {item.p:.3f}"

    good, rest = evidence[:recommended], evidence[recommended:]
    if not good:
        text = f"do not split: one axis captures {figures(rest[0])}"
    else:
        text = f"K = {good[-1].groups} captures {figures(good[-1])}"
        if rest:
            text += f"; K = {rest[0].groups} adds nothing: {figures(rest[0])}"
    shown = [*good[-1:], *rest[:1]]
    return text + (" (an estimate: noise can carry it past 100%)" if max(item.share for item in shown) > 1 else "")
