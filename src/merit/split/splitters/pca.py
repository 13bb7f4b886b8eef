"""`pca`: MERIT, which cuts along the principal axes of gradient conflict (the paper's step 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from merit.config.sections import Balance
from merit.split.median import median_partition
from merit.split.partition import Cut, Partition
from merit.split.splitter import SplitRequest, Splitter

if TYPE_CHECKING:
    from merit.conflict.axes import AxesResult


def pca_partition(axes: AxesResult, sizes: Mapping[str, int], *, r: int, balance: Balance = "tokens") -> Partition:
    """K = 2^r groups by the weighted medians of the scores on the first r axes.

    Args:
        sizes: dataset → planned examples or tokens, as `balance` says.

    Raises:
        InputError: fewer datasets than groups.
    """
    scores = {name: row[: max(r, 1)] for name, row in zip(axes.names, axes.scores, strict=True)}
    partition = median_partition("pca", scores, sizes, axes=r, balance=balance)
    if axes.noise is None:
        return partition
    noise = dict(zip(axes.names, axes.noise, strict=True))
    cuts = [cut.model_copy(update={"margins": _margins(cut, scores, noise)}) for cut in partition.cuts]
    return partition.model_copy(update={"cuts": cuts})


def _margins(
    cut: Cut, scores: Mapping[str, Sequence[float]], noise: Mapping[str, Sequence[float | None]]
) -> dict[str, float]:
    margins = {}
    for name in cut.group:
        error = noise[name][cut.axis]
        if error:
            margins[name] = (scores[name][cut.axis] - cut.threshold) / error
    return margins


def _partition(request: SplitRequest) -> Partition:
    return pca_partition(request.measured_axes(), request.sizes, r=request.r, balance=request.balance)


SPLITTER = Splitter(
    label="MERIT",
    how="along the axes of gradient conflict, at the weighted median of each axis (MERIT)",
    partition=_partition,
    on_axes=True,
)
