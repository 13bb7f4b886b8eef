"""What a partition is worth: the conflict between its groups, judged on gradients that it was not found on.

**Spread.** A partition's share of the conflict is what lies between its groups, Σ_k w_k ‖ḡ_k − ḡ‖² over
Σ_i w_i ‖û_i − ū‖². By Theorem 1 the merging gain is ½ Σ_k w_k (δ_k − δ̄)ᵀH(δ_k − δ̄); with branches that move along their
mean gradient, δ_k ∝ −ḡ_k, and the identity in place of the Hessian H, the share is that gain up to a constant. The
identity is a proxy: it ranks cuts, and predicts no loss. Every dataset counts once (w_k ∝ datasets), as it does for the
axes: with token weights one large dataset would decide alone. Cuts are at weighted medians all the same.

**How many axes?** A partition found on one half-set is judged on the other, whose noise is independent. The next axis
is worth its cut if it captures more than cutting the same groups at random would: 95 in 100 times. The first axis that
is not ends the count; none at all means "do not split".

**Is the partition settled?** Noise that decides a cut does so in one half only: its partition captures no conflict in
the other half. Where more examples would change nothing that matters, a half's partition captures there as much as the
whole's partition seems to. (Labels alone would say too little: datasets near a cut flip at no loss.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.record import Record
from merit.config.sections import Centre
from merit.conflict.axes import principal_axes
from merit.conflict.similarity import HalfGram, cosines
from merit.split.median import median_partition
from merit.split.splitters.pca import pca_partition

DRAWS = 400
LEVEL = 0.05
MAX_AXES = 5
Matrix = NDArray[np.float64]


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

    def words(self, groups: int) -> str:
        """The reason; and whether the settings make `groups` groups against it."""
        if self.recommended > 0 or groups < 2:
            return self.reason
        return f"{self.reason}; this run makes {groups} groups all the same, as it is set to"


def most_axes(datasets: int) -> int:
    """The most axes that are judged for so many datasets."""
    return min(MAX_AXES, datasets.bit_length() - 1)


def weigh_axes(halves: HalfGram, sizes: Mapping[str, int], *, centre: Centre) -> AxesEvidence:
    """Judges 1, 2, … axes as far as T allows.

    Args:
        halves: products of the half-set gradients.
        sizes: dataset → planned examples or tokens, which place the cuts.

    Raises:
        InputError: a dataset has a single calibration example, so there is no second half to judge on.
    """
    for name, pair in zip(halves.names, halves.tokens, strict=True):
        if pair.min() == 0:
            raise InputError("`axes: auto` needs two calibration examples a dataset", field=f"mixture.{name}")
    most = most_axes(len(halves.names))
    evidence: list[AxisEvidence] = []
    for axes in range(1, most + 1):
        found, chance = _judge(halves, sizes, axes, centre)
        p = float((1 + (chance >= found).sum()) / (1 + len(chance)))
        evidence.append(AxisEvidence(axes=axes, groups=2**axes, share=found, random_share=float(chance.mean()), p=p))
        if p > LEVEL:
            break
    recommended = sum(item.p <= LEVEL for item in evidence)
    return AxesEvidence(recommended=recommended, axes=evidence, reason=_reason(recommended, evidence))


def _judge(halves: HalfGram, sizes: Mapping[str, int], axes: int, centre: Centre) -> tuple[float, NDArray[np.float64]]:
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
            parts = median_partition("pca", dict(zip(names, column.tolist(), strict=True)), sizes, axes=axes)
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


def stability(halves: HalfGram, sizes: Mapping[str, int], *, r: int, centre: Centre) -> float:
    """Conflict captured across the halves ÷ conflict captured by the whole in itself, both above chance.

    Near 1: settled, and that with half of the examples already. Near 0: the cuts follow noise. NaN where a dataset has
    a single calibration example.

    Raises:
        InputError: fewer datasets than groups.
    """
    if halves.tokens.min() == 0:
        return float("nan")
    names = list(halves.names)
    weights = [1.0] * len(names)  # as for the axes

    def groups(products: np.ndarray) -> list[list[int]]:
        partition = pca_partition(principal_axes(names, cosines(products), axes=r, centre=centre), sizes, r=r)
        return partition.indices(names)

    across = [
        above_chance(unit_products(halves, 1 - half, debias=True), groups(unit_products(halves, half)), weights)
        for half in range(2)
    ]
    whole = above_chance(unit_products(halves, None, debias=True), groups(halves.means), weights)
    return float(np.mean(across)) / whole if whole > 0 else 0.0


def unit_products(halves: HalfGram, half: int | None, *, debias: bool = False) -> NDArray[np.float64]:
    """(T, T): products of one half's mean gradients (None: of the whole's) in units of the whole mean's norm.

    With `debias` the diagonal, which would hold noise, is the product of the two halves' means, whose noise is
    independent: then sums over groups of datasets are unbiased.
    """
    first, second = (np.eye(2)[h] / halves.tokens for h in range(2))
    chosen = 1 / halves.tokens.sum(1, keepdims=True) * np.ones(2) if half is None else (first, second)[half]
    products = halves.combine(chosen)
    if debias:
        np.fill_diagonal(products, np.diag(halves.combine(first, second)))
    unit: NDArray[np.float64] = products / np.outer(halves.norms, halves.norms)
    return unit


def between_variance(similarity: Matrix, groups: Sequence[Sequence[int]], weights: Sequence[float]) -> float:
    """Σ_k w_k ‖ḡ_k − ḡ‖² of the unit gradients, from their Gram matrix alone (equation of Theorem 1 with H = I).

    Args:
        similarity: (T, T) cosines.
        groups: indices of the datasets of each group; together they cover every dataset once.
        weights: (T,) tokens of each dataset; w_k and the means ḡ_k, ḡ weigh by them.
    """
    w = np.asarray(weights, dtype=np.float64)
    w = w / w.sum()
    total = 0.0
    for group in groups:
        part = w[list(group)]
        if part.sum() > 0:
            total += float(part @ similarity[np.ix_(group, group)] @ part / part.sum())
    return total - float(w @ similarity @ w)


def captured(
    similarity: Matrix,
    groups: Sequence[Sequence[int]],
    reference: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    draws: int = 2000,
) -> float:
    """Share of the conflict that a partition captures: 1 is what `reference` does, 0 random groups of the same sizes.

    Labels flip easily where datasets crowd a cut, at no loss; this is what to compare two partitions by. `similarity`
    should be the best there is (of full gradients), whatever `groups` were found with.
    """
    best = above_chance(similarity, reference, weights, draws=draws)
    return above_chance(similarity, groups, weights, draws=draws) / best


def above_chance(
    similarity: Matrix, groups: Sequence[Sequence[int]], weights: Sequence[float], *, draws: int = 2000
) -> float:
    """`between_variance` minus what random groups of the same sizes have on average."""
    rng = np.random.default_rng(0)
    sizes = np.cumsum([len(group) for group in groups])[:-1]
    chance = 0.0
    for _ in range(draws):
        shuffled = [part.tolist() for part in np.split(rng.permutation(similarity.shape[0]), sizes)]
        chance += between_variance(similarity, shuffled, weights) / draws
    return between_variance(similarity, groups, weights) - chance
