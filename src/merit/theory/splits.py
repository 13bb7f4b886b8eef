"""Compares splitters where everything is known: does the conflict axis give the largest gain?

Two questions are easily confused. The *gain* Σ w_k L(θ_k) − L(θ̄) is what Proposition 1 maximises. The *loss*
L(θ̄) is what a user gets. With one shared H, θ̄ does not depend on the partition at all (every branch's δ is linear in
its group's mean optimum): a larger gain then only means worse branches. Where datasets have curvatures of their own,
the partition does change θ̄, and the second question has an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import adjusted_rand_score

from merit.base.record import Record
from merit.config.sections import Centre
from merit.conflict.axes import principal_axes
from merit.split.partition import Partition
from merit.split.splitter import SplitRequest
from merit.split.splitters.adversarial import greedy_groups
from merit.split.splitters.kmeans import kmeans_partition
from merit.split.splitters.pca import pca_partition
from merit.split.splitters.random import random_partition
from merit.theory.quadratic import Matrix, Tasks, measured_gain, random_tasks

RATE, STEPS = 0.1, 20  # ητλ_max = 2 a branch
OWN_CURVATURE = 0.5
_CENTRES: tuple[Centre, ...] = ("columns", "both", "none")
_RANDOM = 5  # random splits an instance
_COMPARED = ("pca", "pca both", "pca uncentred", "kmeans", "adversarial", "random")


class SplitterScore(Record):
    """One splitter over all instances."""

    splitter: str
    gain_share: float  # share of instances in which its gain is the largest of the splitters compared
    gain_captured: float | None  # mean of gain ÷ the best possible gain of any partition as balanced
    gain_over_random: float  # mean of gain ÷ mean gain of random splits
    loss_share: float  # share of instances in which its merge has the lowest mixture loss (own curvatures)
    loss_over_random: float  # mean of L(θ̄) ÷ mean L(θ̄) of random splits (own curvatures)


class SplitComparison(Record):
    """Splitters compared on random instances."""

    instances: int
    datasets: int
    groups: int
    scores: list[SplitterScore]
    alike: dict[str, float]  # other centring → adjusted Rand index of its groups and the published centring's, mean
    merged_loss_spread: float  # with one shared H: largest relative difference of L(θ̄) between any two splits


def compare_splits(
    rng: np.random.Generator, *, instances: int = 60, datasets: int = 12, axes: int = 1
) -> SplitComparison:
    """Each splitter on the same random instances; with one axis, also the best of all partitions as balanced."""
    gains: dict[str, list[float]] = {name: [] for name in _COMPARED}
    losses: dict[str, list[float]] = {name: [] for name in _COMPARED}
    best: list[float] = []
    chance_gain: list[float] = []  # means over random splits: what the ratios are taken to
    chance_loss: list[float] = []
    alike: dict[str, list[float]] = {"pca both": [], "pca uncentred": []}
    spread = 0.0
    for instance in range(instances):
        shared = random_tasks(rng, datasets=datasets)
        own = random_tasks(rng, datasets=datasets, own_curvature=OWN_CURVATURE)
        merged = []
        partitions = _partitions(shared, axes, instance)
        for name, figures in alike.items():
            labels = [_labels(partitions[other][0], datasets) for other in ("pca", name)]
            figures.append(float(adjusted_rand_score(*labels)))
        for name, parts in partitions.items():
            found = [split_outcome(shared, groups) for groups in parts]
            gains[name].append(found[0][0])
            merged += [loss for _, loss in found]
        chance_gain.append(float(np.mean([gain for gain, _ in found])))  # random comes last
        spread = max(spread, (max(merged) - min(merged)) / max(merged))
        for name, parts in _partitions(own, axes, instance).items():
            found = [split_outcome(own, groups) for groups in parts]
            losses[name].append(found[0][1])
        chance_loss.append(float(np.mean([loss for _, loss in found])))
        if axes == 1:
            best.append(best_gain(shared, partitions["pca"][0]))
    table, merged_losses = (np.array([column[name] for name in _COMPARED]) for column in (gains, losses))
    scores = [
        SplitterScore(
            splitter=name,
            gain_share=float((table.argmax(0) == row).mean()),
            gain_captured=float((table[row] / np.array(best)).mean()) if best else None,
            gain_over_random=float((table[row] / np.array(chance_gain)).mean()),
            loss_share=float((merged_losses.argmin(0) == row).mean()),
            loss_over_random=float((merged_losses[row] / np.array(chance_loss)).mean()),
        )
        for row, name in enumerate(_COMPARED)
    ]
    return SplitComparison(
        instances=instances,
        datasets=datasets,
        groups=2**axes,
        scores=scores,
        alike={name: float(np.mean(figures)) for name, figures in alike.items()},
        merged_loss_spread=spread,
    )


def split_outcome(tasks: Tasks, groups: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Gain, and the mixture's loss at the merge, after every group was trained for the same number of steps."""
    deltas = np.stack([tasks.train(group, rate=RATE, steps=STEPS) for group in groups])
    weights = np.array([tasks.tokens[list(group)].sum() for group in groups]) / tasks.tokens.sum()
    mixture = tasks.pooled()
    return measured_gain(mixture, deltas, weights), float(mixture.loss((weights @ deltas)[None, :])[0])


def best_gain(tasks: Tasks, reference: Sequence[Sequence[int]]) -> float:
    """The largest gain of any two groups that are at least as balanced as `reference`; needs one shared H, T ≤ 16."""
    count = len(tasks.tokens)
    limit = abs(2 * tasks.tokens[list(reference[0])].sum() - tasks.tokens.sum())
    masks = np.arange(1, 2 ** (count - 1))[:, None] >> np.arange(count) & 1  # dataset T−1 always in the second group
    member = masks.astype(np.float64)
    low = member @ tasks.tokens
    total = float(tasks.tokens.sum())
    member, low = member[abs(2 * low - total) <= limit], low[abs(2 * low - total) <= limit]
    # δ_k is linear in the group's mean optimum: train every dataset alone once, and average.
    alone = np.stack([tasks.train([t], rate=RATE, steps=STEPS) for t in range(count)])
    first = (member * tasks.tokens) @ alone / low[:, None]
    second = ((1 - member) * tasks.tokens) @ alone / (total - low)[:, None]
    apart = first - second
    share = low / total
    hessian: Matrix = tasks.hessians[0]
    gains = 0.5 * share * (1 - share) * np.einsum("nd,nd->n", apart @ hessian, apart)
    return float(gains.max())


def _partitions(tasks: Tasks, axes: int, seed: int) -> dict[str, list[list[list[int]]]]:
    names = [f"task {t:02d}" for t in range(len(tasks.tokens))]
    tokens = {name: int(count) for name, count in zip(names, tasks.tokens, strict=True)}
    unit = tasks.gradients / np.linalg.norm(tasks.gradients, axis=1, keepdims=True)
    similarity = unit @ unit.T
    columns, both, none = (principal_axes(names, similarity, axes=axes, centre=centre) for centre in _CENTRES)
    made = {
        "pca": [pca_partition(columns, tokens, r=axes)],
        "pca both": [pca_partition(both, tokens, r=axes)],
        "pca uncentred": [pca_partition(none, tokens, r=axes)],
        "kmeans": [kmeans_partition(columns, tokens, r=axes, seed=seed)],
        "adversarial": [SplitRequest(tokens, axes, seed).partition(greedy_groups(names, similarity, 2**axes))],
        "random": [random_partition(tokens, r=axes, seed=_RANDOM * seed + draw) for draw in range(_RANDOM)],
    }
    return {name: [_indices(names, part) for part in parts] for name, parts in made.items()}


def _labels(groups: Sequence[Sequence[int]], datasets: int) -> list[int]:
    """(T,) the group of each dataset."""
    group_of = {t: k for k, group in enumerate(groups) for t in group}
    return [group_of[t] for t in range(datasets)]


def _indices(names: Sequence[str], partition: Partition) -> list[list[int]]:
    return [[names.index(name) for name in group.datasets] for group in partition.groups]


def split_rows(splits: SplitComparison) -> list[list[str]]:
    """Header and a row a splitter."""
    rows = [["splitter", "largest gain in", "of the best", "gain ÷ random", "lowest L(θ̄) in", "L(θ̄) ÷ random"]]
    for score in splits.scores:
        captured = "–" if score.gain_captured is None else f"{score.gain_captured:.2f}"
        rows.append(
            [
                score.splitter,
                f"{score.gain_share:.0%}",
                captured,
                f"{score.gain_over_random:.2f}",
                f"{score.loss_share:.0%}",
                f"{score.loss_over_random:.4f}",
            ]
        )
    return rows
