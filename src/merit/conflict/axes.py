"""Principal axes of the similarity matrix: the directions along which datasets disagree most.

C_ij = cos(g_i, g_j) is the Gram matrix of the unit gradients û_i, and J = I − 11ᵀ/T. `split.centre` says what is
decomposed:

columns  J C, the paper's "column-centred PCA applied to C": the rows of C are the points. Scores J C V, with V the
         right singular vectors; the eigenvalues are those of J C² J.
both     J C J, the Gram matrix of û_i − mean(û): a PCA of the unit gradients themselves. Scores U √λ.
none     C. The first axis of a matrix with mostly positive entries is what all datasets share, and a cut along it sets
         typical datasets against untypical ones, not conflicting ones. Scores U √λ.

Each axis is a direction w = Σ_t d_t û_t among the gradients; a dataset's score is its (centred) gradient along it.
Every dataset counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from merit.base.record import Record
from merit.config.sections import Centre

Matrix = NDArray[np.float64]
_TIE = 1e-9  # components nearer than this, relative to the largest, count as equally large


class AxesResult(Record):
    """`axes.json`: principal axes of the similarity matrix, the largest first."""

    names: list[str]
    centre: Centre
    eigenvalues: list[float]  # all T, in descending order: the squared length of each column of scores
    scores: list[list[float]]  # T rows, one column an axis kept (two at least where T allows), sign fixed
    directions: list[list[float]]  # as many rows and columns: axis k is the vector Σ_t directions[t][k] û_t
    noise: list[list[float | None]] | None = None  # standard errors of the scores; None where a half-set is empty

    @model_validator(mode="before")
    @classmethod
    def _from_first_version(cls, value: Any) -> Any:
        """merit 0.1.0 wrote `centred`, true for `both`; and U √λ has the directions U / √λ."""
        if not isinstance(value, dict) or "centred" not in value:
            return value
        value = {**value, "centre": "both" if value["centred"] else "none"}
        del value["centred"]
        lengths = np.array(value["eigenvalues"][: len(value["scores"][0])] if value["scores"] else [])
        known = np.where(lengths > 0, lengths, np.inf)
        return value | {"directions": [list(np.array(row) / known) for row in value["scores"]]}


def centre_matrix(similarity: Matrix, centre: Centre = "both") -> Matrix:
    """(T, T): J C, J C J or C."""
    symmetric: Matrix = (similarity + similarity.T) / 2
    if centre == "none":
        return symmetric
    means = symmetric.mean(axis=0, keepdims=True)
    columns: Matrix = symmetric - means
    return columns if centre == "columns" else columns - means.T + means.mean()


def decompose(similarity: Matrix, centre: Centre) -> tuple[NDArray[np.float64], Matrix, Matrix]:
    """All T axes: eigenvalues (T,), descending; scores (T, T), a column an axis; directions (T, T), likewise."""
    matrix = centre_matrix(similarity, centre)
    if centre == "columns":
        left, sizes, right = np.linalg.svd(matrix)
        return sizes**2, left * sizes, right.T
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    root = np.sqrt(np.maximum(values, 0.0))
    return values, vectors * root, np.divide(vectors, root, out=np.zeros_like(vectors), where=root > 0)


def principal_axes(names: Sequence[str], similarity: Matrix, *, axes: int, centre: Centre = "columns") -> AxesResult:
    """The first `axes` axes (two at least, for plots).

    The outcome does not depend on the order of the datasets: the decomposition runs in the order of their names, and
    each axis points so that its largest |component| is positive (the first such by name, if several are as large).
    """
    count = len(names)
    order = sorted(range(count), key=lambda i: names[i])
    matrix = np.asarray(similarity, dtype=np.float64)[np.ix_(order, order)]
    values, scores, directions = decompose(matrix, centre)
    kept = min(max(axes, 2), count)
    placed = np.empty((2, count, kept))
    for axis in range(kept):
        size = np.abs(scores[:, axis])
        leader = int(np.flatnonzero(size >= size.max() * (1 - _TIE))[0])
        sign = np.sign(scores[leader, axis]) or 1.0
        placed[0, order, axis] = scores[:, axis] * sign
        placed[1, order, axis] = directions[:, axis] * sign
    return AxesResult(
        names=list(names),
        centre=centre,
        eigenvalues=values.tolist(),
        scores=placed[0].tolist(),
        directions=placed[1].tolist(),
    )
