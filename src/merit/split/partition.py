"""The partition: which datasets train together. A person can read it, and write one for the `manual` splitter.

Here are also the rule that cuts groups (the recursive token-weighted median: axis after axis, every group is cut where
its tokens halve), and what keeps a partition while its mixture changes: datasets come and go, the others keep their
branches. A new dataset's coordinate on a saved axis is what a PCA gives a point that it was not fitted on: with
S = U Λ Uᵀ of the old datasets and c the new one's (double-centred) cosines with them, its score is Uᵀc / √Λ. For an old
dataset that is its own score. The saved cuts then say which group it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from merit.base.errors import InputError
from merit.base.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from merit.conflict.axes import AxesResult

FRAGILE = 2.0  # standard errors


class Cut(Record):
    """One cut of one group along one axis, as the recursive median made it."""

    axis: int  # 0-based
    group: list[str]  # the datasets that were cut, in order of their score
    threshold: float  # halfway between the last score below and the first above
    tokens_low: int
    tokens_high: int
    margins: dict[str, float] = Field(
        default_factory=dict
    )  # dataset → how many standard errors its score is away from the threshold
    note: str | None = None  # e.g. "`flan` holds 71% of this group's tokens: the cut cannot balance it"


class Group(Record):
    """One branch's datasets."""

    datasets: list[str]
    tokens: int  # planned supervised tokens an epoch, weights applied


class Partition(Record):
    """`partition.json`. `scores` maps a dataset to its coordinates on the axes (empty where the splitter has none)."""

    splitter: str
    groups: list[Group]
    scores: dict[str, list[float]]
    cuts: list[Cut]
    seed: int | None = None

    @model_validator(mode="after")
    def _no_empty_group(self) -> Partition:
        if not self.groups or any(not group.datasets for group in self.groups):
            raise ValueError("a group has no dataset")
        return self

    def indices(self, names: Sequence[str]) -> list[list[int]]:
        """The groups as positions in `names`."""
        position = {name: i for i, name in enumerate(names)}
        return [[position[name] for name in group.datasets] for group in self.groups]

    @property
    def fragile(self) -> list[str]:
        """Datasets that the noise of their gradient could well have put on the other side of a cut, by name."""
        return sorted({name for cut in self.cuts for name, z in cut.margins.items() if abs(z) < FRAGILE})

    @cached_property
    def group_of(self) -> dict[str, int]:
        """Dataset → index of its (first) group."""
        return {name: k for k in reversed(range(len(self.groups))) for name in self.groups[k].datasets}


def median_partition(
    splitter: str,
    scores: Mapping[str, Sequence[float]],
    tokens: Mapping[str, int],
    *,
    axes: int,
    seed: int | None = None,
) -> Partition:
    """K = 2^axes groups of near-equal tokens. Group k's binary digits, axis 0 first, say low (0) or high (1).

    Args:
        scores: dataset → its coordinate on each axis (`axes` of them at least).
        tokens: dataset → planned supervised tokens.

    Raises:
        InputError: fewer datasets than groups.
    """
    if 2**axes > len(scores):
        raise InputError(
            f"{axes} axes make {2**axes} groups, but the mixture has only {len(scores)} "
            f"dataset{'s' * (len(scores) != 1)}; use at most {max(len(scores), 1).bit_length() - 1}",
            field="split.axes",
        )
    groups = [sorted(scores)]
    cuts: list[Cut] = []
    for axis in range(axes):
        halves: list[list[str]] = []
        for group in groups:
            low, high, cut = cut_group(
                {name: scores[name][axis] for name in group}, tokens, axis=axis, keep=2 ** (axes - axis - 1)
            )
            halves += [low, high]
            cuts.append(cut)
        groups = halves
    return Partition(
        splitter=splitter,
        groups=[Group(datasets=sorted(group), tokens=sum(tokens[name] for name in group)) for group in groups],
        scores={name: list(map(float, values)) for name, values in scores.items()},
        cuts=cuts,
        seed=seed,
    )


def cut_group(
    scores: Mapping[str, float], tokens: Mapping[str, int], *, axis: int, keep: int = 1
) -> tuple[list[str], list[str], Cut]:
    """Cuts one group in two.

    **The rule.** Datasets stand in order of (score, name). Among the cuts that leave at least `keep` datasets on either
    side (as many as the remaining axes need), the one with the smallest |tokens low − tokens high| is taken; of two
    equally good cuts, the one that gives the low side more.
    """
    order = sorted(scores, key=lambda name: (scores[name], name))
    total = sum(tokens[name] for name in order)
    low_tokens = [0]
    for name in order:
        low_tokens.append(low_tokens[-1] + tokens[name])

    def imbalance(cut: int) -> int:
        return abs(2 * low_tokens[cut] - total)

    best = min(range(keep, len(order) - keep + 1), key=lambda cut: (imbalance(cut), -cut))
    freest = min(range(1, len(order)), key=lambda cut: (imbalance(cut), -cut))
    cut = Cut(
        axis=axis,
        group=order,
        threshold=(scores[order[best - 1]] + scores[order[best]]) / 2,
        tokens_low=low_tokens[best],
        tokens_high=total - low_tokens[best],
        note=_note(order, tokens, total, keep if best != freest else 0),
    )
    return order[:best], order[best:], cut


def _note(order: Sequence[str], tokens: Mapping[str, int], total: int, kept: int) -> str | None:
    notes = []
    heaviest = max(order, key=lambda name: tokens[name])
    if 2 * tokens[heaviest] > total:
        share = tokens[heaviest] / total
        notes.append(f"`{heaviest}` holds {share:.0%} of this group's tokens: the cut cannot balance it")
    if kept:
        notes.append(f"each side must keep {kept} datasets for the axes that follow: the cut is moved off the median")
    return "; ".join(notes) or None


def extend_partition(
    kept: Partition,
    axes: AxesResult | None,
    names: list[str],
    similarity: NDArray[np.float64] | None,
    tokens: Mapping[str, int],
) -> Partition:
    """`kept` without the datasets that are gone, and with those that are new.

    Args:
        axes: the axes that `kept` was cut on. Without them a new dataset goes to the group with the fewest tokens.
        names: the mixture's datasets now, in the order of `similarity` (T, T).
        tokens: dataset → planned supervised tokens.

    Raises:
        InputError: a group would be left without a dataset.
    """
    members = [[name for name in group.datasets if name in tokens] for group in kept.groups]
    for k, group in enumerate(members):
        if not group:
            raise InputError(
                f"branch {k} would be left without a dataset; set `split.keep: false` and run again to split anew",
                field="mixture",
            )
    scores = {name: row for name, row in kept.scores.items() if name in tokens}
    for name in sorted(set(names) - {name for group in members for name in group}):
        if axes is not None and similarity is not None and kept.cuts:
            scores[name] = project(axes, names, similarity, name)
            k = _by_cuts(kept, scores[name])
        else:
            k = min(range(len(members)), key=lambda k: (sum(tokens[item] for item in members[k]), k))
        members[k].append(name)
    groups = [Group(datasets=sorted(group), tokens=sum(tokens[name] for name in group)) for group in members]
    return kept.model_copy(update={"groups": groups, "scores": scores})


def project(axes: AxesResult, names: list[str], similarity: NDArray[np.float64], name: str) -> list[float]:
    """The coordinates of dataset `name` on axes that it was not part of, one a kept axis."""
    import numpy as np

    old = [item for item in axes.names if item in names]
    rows = [axes.names.index(item) for item in old]
    here = [names.index(item) for item in old]
    square = similarity[np.ix_(here, here)]
    cosines = similarity[names.index(name), here]
    if axes.centred:
        cosines = cosines - cosines.mean() - square.mean(axis=0) + square.mean()
    scores = np.asarray(axes.scores, np.float64)[rows]
    values = np.asarray(axes.eigenvalues[: scores.shape[1]], np.float64)
    found: list[float] = np.where(values > 0, scores.T @ cosines / np.where(values > 0, values, 1.0), 0.0).tolist()
    return found


def _by_cuts(kept: Partition, scores: list[float]) -> int:
    """The group whose side of every cut the scores are on: group k's binary digits, axis 0 first."""
    k = 0
    for axis in range(len(kept.groups).bit_length() - 1):
        cut = kept.cuts[2**axis - 1 + k]
        k = 2 * k + (scores[axis] > cut.threshold)
    return k
