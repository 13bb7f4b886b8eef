"""T×T inner products of the stored sketches, streamed: no more than a few columns of the store are ever in memory.

Cosines come from the whole rows. What needs the half-sets (reliability, standard errors) comes from the hashed rows,
whose products are good to about a percent, and which fit in memory whatever the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from merit.gradients.store import SketchStore

Matrix = NDArray[np.float64]

BUDGET_BYTES = 256 * 2**20  # of blocks of columns


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
