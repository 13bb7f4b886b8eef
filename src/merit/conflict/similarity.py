"""Similarity of the datasets' gradients: T×T inner products of the stored sketches, and how far they can be trusted.

Products are streamed: no more than a few columns of the store are ever in memory. Cosines come from the whole rows.
What needs the half-sets (reliability, standard errors) comes from the hashed rows, whose products are good to about a
percent, and which fit in memory whatever the model is.

A mean over a few hundred examples is signal plus noise, and the noise of different datasets is independent. So
⟨g_i, g_j⟩ (i ≠ j) and ⟨half 0 of i, half 1 of i⟩ are unbiased, while ‖g_i‖² is too large, which pulls every cosine
toward 0, and unevenly. Reliability and noise undo or measure that.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from merit.base.arrays import read_array
from merit.base.errors import InputError
from merit.base.record import Record
from merit.conflict.axes import AxesResult, principal_axes
from merit.gradients.store import SketchStore

DUPLICATE = 0.98  # cosine above which two datasets teach the same
Matrix = NDArray[np.float64]
BUDGET_BYTES = 256 * 2**20  # of blocks of columns
Vector = NDArray[np.float64]


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


def load_similarity(path: Path) -> NDArray[np.float64]:
    """(T, T) float64 cosines of a run.

    Raises:
        InputError: missing or damaged.
    """
    try:
        return read_array(path)
    except InputError as error:
        raise InputError(f"{error.message}; run `merit conflict` again", file=path) from None


def gram(store: SketchStore, names: Sequence[str], *, budget_bytes: int = BUDGET_BYTES) -> Matrix:
    """(T, T): ⟨g_i, g_j⟩ of the token-weighted mean gradients. The diagonal holds noise: E‖g‖² is too large.

    Reads every row once, block by block of columns, the next block while the last one is multiplied. Products are
    float32 within a block and float64 between blocks.

    Raises:
        InputError: a row is missing or truncated.
    """
    tokens = np.array([sum(row.tokens) for row in store.rows(names)], dtype=np.float64)
    columns = max(1, min(store.numbers, budget_bytes // (2 * 4 * max(len(names), 1))))
    buffers = [np.empty((len(names), columns), dtype=np.float32) for _ in range(2)]

    def load(block: int) -> NDArray[np.float32]:
        start = block * columns
        part = buffers[block % 2][:, : min(columns, store.numbers - start)]
        for i, name in enumerate(names):
            store.read_total(name, start, part[i])
        return part

    blocks = -(-store.numbers // columns)
    products = np.zeros((len(names), len(names)))
    # One thread multiplies as fast as another reads; more of them only wait for each other on a busy machine (60 times
    # slower was seen).
    with ThreadPoolExecutor(max_workers=1) as reader, threadpool_limits(1):
        ahead = reader.submit(load, 0)
        for block in range(blocks):
            part = ahead.result()
            if block + 1 < blocks:
                ahead = reader.submit(load, block + 1)
            products += part @ part.T
    result: Matrix = products / np.outer(tokens, tokens)
    return result


def cosines(products: Matrix) -> Matrix:
    """(T, T): cosines from inner products; symmetric, with an exact unit diagonal."""
    norms = np.sqrt(np.diag(products))
    result: Matrix = products / np.outer(norms, norms)
    result = np.clip((result + result.T) / 2, -1, 1)
    np.fill_diagonal(result, 1.0)
    return result


@dataclass(frozen=True)
class HalfGram:
    """Inner products of the half-set gradient sums of T datasets. From it follow all cosines and their reliability.

    Sketches are linear, so everything that is linear in gradients (means, halves, differences) needs only this matrix.
    """

    names: tuple[str, ...]
    products: Matrix  # (T, 2, T, 2): ⟨sum of half h of i, sum of half k of j⟩
    tokens: NDArray[np.int64]  # (T, 2): supervised tokens of the halves

    @cached_property
    def means(self) -> Matrix:
        """(T, T): ⟨g_i, g_j⟩, as `gram` gives it."""
        return self.combine(np.repeat(1 / self.tokens.sum(1, keepdims=True), 2, axis=1))

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """(T,): ‖g_i‖."""
        return np.sqrt(np.diag(self.means))

    @cached_property
    def cosines(self) -> Matrix:
        """(T, T): cos(g_i, g_j)."""
        return cosines(self.means)

    def combine(self, left: Matrix, right: Matrix | None = None) -> Matrix:
        """(T, T): products of the linear combinations Σ_h left[i, h] · half h of i, and those of `right`."""
        right = left if right is None else right
        out: Matrix = np.einsum("ih,ihjk,jk->ij", left, self.products, right, optimize=True)
        return out


def half_gram(store: SketchStore, names: Sequence[str], *, budget_bytes: int = BUDGET_BYTES) -> HalfGram:
    """Products of all half-sets of `names`: twice the reading and four times the work of `gram`.

    Give it the store's `companion`.

    Raises:
        InputError: a row is missing or truncated.
    """
    rows = store.rows(names)
    count = 2 * len(names)
    columns = max(1, min(store.numbers, budget_bytes // (4 * count)))
    block = np.empty((count, columns), dtype=np.float32)
    products = np.zeros((count, count))
    for start in range(0, store.numbers, columns):
        stop = min(start + columns, store.numbers)
        part = block[:, : stop - start]
        for i, name in enumerate(names):
            part[2 * i : 2 * i + 2] = store.read_halves(name, start, stop)
        products += part @ part.T
    tokens = np.array([row.tokens for row in rows], dtype=np.int64).reshape(-1, 2)
    return HalfGram(tuple(names), products.reshape(len(names), 2, len(names), 2), tokens)


def half_cosines(gram: HalfGram) -> Vector:
    """(T,): cosine between the two half-set means of each dataset; NaN where a half is empty."""
    own = np.einsum("ihik->ihk", gram.products)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: Vector = own[:, 0, 1] / np.sqrt(own[:, 0, 0] * own[:, 1, 1])
    return np.where(gram.tokens.min(1) > 0, cosines, np.nan)


def reliability(gram: HalfGram) -> Vector:
    """(T,): Spearman–Brown 2c / (1 + c) of the half-set cosine c: what share of ‖g‖² is signal. In 0..1, or NaN."""
    half = np.maximum(half_cosines(gram), 0)
    corrected: Vector = 2 * half / (1 + half)
    return corrected


def disattenuated(gram: HalfGram, cosines: Matrix) -> Matrix:
    """(T, T): `cosines` as between the *true* mean gradients: cos_ij / √(rel_i rel_j), clipped to ±1; unit diagonal.

    NaN where a reliability is zero or unknown. Less biased and more variable than the plain cosines.
    """
    rel = reliability(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.clip(cosines / np.sqrt(np.outer(rel, rel)), -1, 1)
    result[~(rel > 0), :] = np.nan
    result[:, ~(rel > 0)] = np.nan
    np.fill_diagonal(result, 1.0)
    return result


def noise(gram: HalfGram) -> Vector:
    """(T,): s_i, such that the standard error of cos_ij is √(s_i² + s_j²); NaN where a half is empty.

    The noise of the mean g_i is estimated by d_i = (half mean 0 − half mean 1) √(n₀ n₁) / n, which has its covariance.
    To first order cos_ij moves by d_i's part across g_i along g_j's direction, d_i·(û_j − cos_ij û_i) / ‖g_i‖. One
    difference gives one draw a pair, so s_i² is the mean of its square over all j ≠ i.
    """
    count = len(gram.names)
    if count < 2:
        return np.full(count, np.nan)
    shift = _shifts(gram)
    np.fill_diagonal(shift, 0)
    s = np.sqrt((shift**2).sum(1) / (count - 1))
    return np.where(gram.tokens.min(1) > 0, s, np.nan)


def score_noise(gram: HalfGram, axes: AxesResult) -> Matrix:
    """(T, axes kept): standard errors of the scores; NaN where a half is empty.

    The noise of all gradients, drawn once as in `noise`, moves cos_ij by its parts from i and from j. How far the
    scores of the matrix so moved lie from these is one draw a dataset and axis; the estimate is the product model
    s_ik² = (mean over k)_i (mean over i)_k / mean.
    """
    shift = _shifts(gram)
    np.fill_diagonal(shift, 0)
    scores = np.array(axes.scores)
    moved = principal_axes(gram.names, gram.cosines + shift + shift.T, axes=scores.shape[1], centre=axes.centre)
    again = np.array(moved.scores)
    again *= np.where((again * scores).sum(0) < 0, -1, 1)  # a sign is a convention
    draws = (again - scores) ** 2
    known = gram.tokens.min(1) > 0
    by_axis = draws[known].mean(0) if known.any() else draws.mean(0) * np.nan
    s: Matrix = np.sqrt(np.outer(draws.mean(1), by_axis) / max(float(by_axis.mean()), 1e-300))
    s[~known] = np.nan
    return s


def _shifts(gram: HalfGram) -> Matrix:
    """(T, T): how far noise like that of g_i moves û_i along û_j, d_i·(û_j − cos_ij û_i) / ‖g_i‖."""
    n = gram.tokens.astype(np.float64)
    total = n.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.sqrt(n[:, 0] * n[:, 1]) / total
        difference = np.stack([weight / n[:, 0], -weight / n[:, 1]], axis=1)
    mean = np.repeat(1 / total[:, None], 2, axis=1)
    along = gram.combine(np.nan_to_num(difference, posinf=0, neginf=0), mean)  # d_i · g_j
    unit = along / gram.norms[None, :]
    shifts: Matrix = (unit - gram.cosines * np.diag(unit)[:, None]) / gram.norms[:, None]
    return shifts
