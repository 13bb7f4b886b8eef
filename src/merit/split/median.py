"""The recursive token-weighted median: axis after axis, every group is cut where its tokens halve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merit.base.errors import InputError
from merit.split.partition import Cut, Group, Partition


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
