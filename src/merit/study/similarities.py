"""Ways to say how alike two datasets' gradients are; the study asks which of them foretells harm.

raw             cosine of the mean gradients, as published
disattenuated   as between the true means: divided by √(reliability · reliability)
matrices        without norm weights and biases, which hold much of the energy in few coordinates
adam            gradients divided by √RMS of the mixture's: the inner product ⟨g_i, g_j / RMS⟩, what AdamW's step on j
                does to i in first order
rms             gradients divided by the RMS: every coordinate counts alike (the diagonal Fisher's inverse as metric)
curvature       the same with damping: ⟨g_i, (F + λ)⁻¹ g_j⟩, F the mixture's mean squared gradient, λ its mean

RMS and F are taken over the half-set means of all datasets, coordinate by coordinate of what the sketch keeps: exact
for a full sketch, sums of a hundred coordinates for a fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from merit.conflict.reliability import disattenuated
from merit.conflict.similarity import HalfGram, cosines
from merit.gradients.store import SketchStore

Matrix = NDArray[np.float64]
VARIANTS = ("raw", "disattenuated", "matrices", "adam", "rms", "curvature")
_COLUMNS = 1 << 17


def similarities(store: SketchStore, halves: HalfGram, names: Sequence[str]) -> dict[str, Matrix]:
    """Variant → (T, T). Reads the store twice.

    Raises:
        InputError: a row is missing or truncated.
    """
    tokens = np.array([row.tokens for row in store.rows(names)], dtype=np.float64)  # (T, 2)
    matrix = _matrix_columns(store)
    level = sum(float(second.sum()) for _, _, second in _blocks(store, names, tokens)) / max(1, store.numbers)
    found = {name: np.zeros((len(names), len(names))) for name in VARIANTS if name != "disattenuated"}
    for start, means, second in _blocks(store, names, tokens):
        live = second > 0
        means, second = means[:, live], second[live]
        kept = matrix[start : start + len(live)][live]
        scaled = {
            "raw": means,
            "matrices": means[:, kept],
            "adam": means / second**0.25,
            "rms": means / second**0.5,
            "curvature": means / (second + level) ** 0.5,
        }
        for name, part in scaled.items():
            found[name] += part @ part.T
    result = {name: cosines(products) for name, products in found.items()}
    result["disattenuated"] = np.nan_to_num(disattenuated(halves, result["raw"]), nan=0.0)
    return {name: result[name] for name in VARIANTS}


def _blocks(
    store: SketchStore, names: Sequence[str], tokens: NDArray[np.float64]
) -> Iterator[tuple[int, Matrix, NDArray[np.float64]]]:
    """First column; mean gradients (T, columns); mean square (columns,) over datasets and half-sets."""
    for start in range(0, store.numbers, _COLUMNS):
        stop = min(start + _COLUMNS, store.numbers)
        sums = np.stack([store.read_halves(name, start, stop) for name in names]).astype(np.float64)  # (T, 2, columns)
        means = sums.sum(axis=1) / tokens.sum(axis=1)[:, None]
        halves = sums / np.maximum(tokens, 1)[:, :, None]
        yield start, means, (halves**2).mean(axis=(0, 1))


def _matrix_columns(store: SketchStore) -> NDArray[np.bool_]:
    """(numbers,) which columns are of matrices; all of a hashed row, where parameters are mixed."""
    layout = store.info.layout
    found = np.ones(store.numbers, np.bool_)
    if not layout.spec.hashed:
        for tensor in layout.tensors:
            if len(tensor.shape) < 2:
                found[tensor.start : tensor.stop] = False
    return found
