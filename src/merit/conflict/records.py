"""What the conflict stage leaves behind as JSON; the matrix itself is `similarity.npy` (T×T, float64)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.record import Record


class ConflictResult(Record):
    """`conflict.json`. All lists are in the order of `names`."""

    names: list[str]
    sketch: str  # how gradients were kept, in words: "fold 100, seed 0"
    sketch_numbers: int  # floats kept a dataset
    parameters: int  # trainable parameters that the sketch covers
    examples: list[int]  # calibration examples used
    tokens: list[int]  # supervised tokens the mean is over
    norms: list[float]  # norm of the mean gradient, as the sketch estimates it
    losses: list[float]  # mean loss at θ0 on the calibration set
    reliability: list[float | None]  # split-half reliability (Spearman–Brown), 0 to 1; None with a single example
    noise: list[float | None]  # s_i: the standard error of cos(i, j) is √(s_i² + s_j²); None with a single example
    notes: list[str]


class AxesResult(Record):
    """`axes.json`: principal axes of the (centred) similarity matrix, S = U diag(λ) Uᵀ, largest first."""

    names: list[str]
    centred: bool
    eigenvalues: list[float]  # all T, in descending order
    scores: list[list[float]]  # T rows, one column an axis kept (two at least where T allows): U √λ, sign fixed
    noise: list[list[float | None]] | None = None  # standard errors of the scores; None where a half-set is empty


def load_similarity(path: Path) -> NDArray[np.float64]:
    """(T, T) float64 cosines of a run.

    Raises:
        InputError: missing or damaged.
    """
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"damaged ({error}); run `merit conflict` again", file=path) from None
