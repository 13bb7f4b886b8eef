"""The rule that cuts groups, the recursive weighted median: axis after axis, every group is cut where its examples, or
its tokens, halve. `cut_group` says what happens at a tie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merit.base.errors import InputError
from merit.config.sections import Balance
from merit.split.partition import Cut, Group, Partition


def median_partition(
    splitter: str,
    scores: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int],
    *,
    axes: int,
    seed: int | None = None,
    balance: Balance = "tokens",
) -> Partition:
    """K = 2^axes groups of near-equal size. Group k's binary digits, axis 0 first, say low (0) or high (1).

    Args:
        scores: dataset → its coordinate on each axis (`axes` of them at least).
        sizes: dataset → planned examples or tokens, as `balance` says.

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
            along = {name: scores[name][axis] for name in group}
            low, high, cut = cut_group(along, sizes, axis=axis, keep=2 ** (axes - axis - 1), balance=balance)
            halves += [low, high]
            cuts.append(cut)
        groups = halves
    return Partition(
        splitter=splitter,
        groups=[Group.of(sorted(group), sizes) for group in groups],
        scores={name: list(map(float, values)) for name, values in scores.items()},
        cuts=cuts,
        seed=seed,
    )


def cut_group(
    scores: Mapping[str, float], sizes: Mapping[str, int], *, axis: int, keep: int = 1, balance: Balance = "tokens"
) -> tuple[list[str], list[str], Cut]:
    """Cuts one group in two.

    **The rule.** Datasets stand in order of (score, name). Among the cuts that leave at least `keep` datasets on either
    side (as many as the remaining axes need), the one with the smallest |low − high| is taken; of two
    equally good cuts, the one that gives the low side more.
    """
    order = sorted(scores, key=lambda name: (scores[name], name))
    below = [0]
    for name in order:
        below.append(below[-1] + sizes[name])
    total = below[-1]

    def imbalance(cut: int) -> int:
        return abs(2 * below[cut] - total)

    best = min(range(keep, len(order) - keep + 1), key=lambda cut: (imbalance(cut), -cut))
    freest = min(range(1, len(order)), key=lambda cut: (imbalance(cut), -cut))
    cut = Cut(
        axis=axis,
        group=order,
        threshold=(scores[order[best - 1]] + scores[order[best]]) / 2,
        low=below[best],
        high=total - below[best],
        balance=balance,
        note=_note(order, sizes, keep if best != freest else 0, "examples" if balance == "samples" else "tokens"),
    )
    return order[:best], order[best:], cut


def _note(order: Sequence[str], sizes: Mapping[str, int], kept: int, unit: str) -> str | None:
    notes = []
    heaviest, total = max(order, key=lambda name: sizes[name]), sum(sizes[name] for name in order)
    if 2 * sizes[heaviest] > total:
        share = sizes[heaviest] / total
        notes.append(f"`{heaviest}` holds {share:.0%} of this group's {unit}: the cut cannot balance it")
    if kept:
        notes.append(f"each side must keep {kept} datasets for the axes that follow: the cut is moved off the median")
    return "; ".join(notes) or None
