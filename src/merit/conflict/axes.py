"""Principal axes of the similarity matrix: the directions along which datasets disagree most.

S_ij = cos(g_i, g_j) is the Gram matrix of the unit gradients û_i. **Centred** (the default) means double-centred,
J S J with J = I − 11ᵀ/T, every dataset counting once: the Gram matrix of û_i − mean(û). Its axes are those of a PCA of
the unit gradients, hence directions of *difference*. Uncentred, the first axis of a matrix with mostly positive
entries is what all datasets share, and a cut along it sets typical against untypical datasets, not conflicting ones.
The paper does not say which it used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merit.base.record import Record

Matrix = NDArray[np.float64]
_TIE = 1e-9  # components nearer than this, relative to the largest, count as equally large


class AxesResult(Record):
    """`axes.json`: principal axes of the (centred) similarity matrix, S = U diag(λ) Uᵀ, largest first."""

    names: list[str]
    centred: bool
    eigenvalues: list[float]  # all T, in descending order
    scores: list[list[float]]  # T rows, one column an axis kept (two at least where T allows): U √λ, sign fixed
    noise: list[list[float | None]] | None = None  # standard errors of the scores; None where a half-set is empty


def centred(similarity: Matrix) -> Matrix:
    """J S J: rows and columns with mean zero."""
    rows = similarity.mean(axis=0, keepdims=True)
    result: Matrix = similarity - rows - rows.T + similarity.mean()
    return (result + result.T) / 2


def principal_axes(names: Sequence[str], similarity: Matrix, *, axes: int, centre: bool = True) -> AxesResult:
    """Eigenvalues in descending order, and the scores U √λ on the first `axes` axes (two at least, for plots).

    The outcome does not depend on the order of the datasets: the decomposition runs in the order of their names, and
    each axis points so that its largest |component| is positive (the first such by name, if several are as large).
    """
    count = len(names)
    order = sorted(range(count), key=lambda i: names[i])
    matrix = np.asarray(similarity, dtype=np.float64)[np.ix_(order, order)]
    values, vectors = np.linalg.eigh(centred(matrix) if centre else (matrix + matrix.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = min(max(axes, 2), count)
    scores = np.empty((count, kept))
    for axis in range(kept):
        column = vectors[:, axis]
        size = np.abs(column)
        leader = int(np.flatnonzero(size >= size.max() * (1 - _TIE))[0])
        scores[order, axis] = column * np.sign(column[leader]) * np.sqrt(max(values[axis], 0.0))
    return AxesResult(names=list(names), centred=centre, eigenvalues=values.tolist(), scores=scores.tolist())
