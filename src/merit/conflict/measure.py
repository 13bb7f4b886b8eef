"""The conflict stage: from the store of sketches to similarity, reliability and axes, written into the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merit.base.files import atomic_path
from merit.conflict.axes import principal_axes
from merit.conflict.records import AxesResult, ConflictResult
from merit.conflict.reliability import noise, reliability, score_noise
from merit.conflict.similarity import HalfGram, cosines, gram, half_gram
from merit.data.mixture import Mixture
from merit.gradients.store import SketchStore
from merit.run.layout import RunDir

UNRELIABLE = 0.5  # below it, most of a mean gradient is noise
DUPLICATE = 0.98  # cosine above which two datasets teach the same


def measure_conflict(
    run: RunDir, mixture: Mixture, store: SketchStore, axes: int, centre: bool
) -> tuple[ConflictResult, AxesResult, NDArray[np.float64]]:
    """Similarity (T×T cosines, float64), its axes and its reliability, in the mixture's order.

    Writes `conflict/similarity.npy`, `conflict.json` and `axes.json`, each atomically.

    Raises:
        InputError: a sketch is missing or truncated.
    """
    products = gram(store, mixture.names)
    similarity = cosines(products)
    halves = half_gram(store.companion, mixture.names)
    result = describe(store, halves, products)
    found = principal_axes(mixture.names, similarity, axes=axes, centre=centre)
    errors = score_noise(halves, found)
    found = found.model_copy(update={"noise": [_optional(row) for row in errors]})
    with atomic_path(run.similarity) as part, part.open("wb") as handle:
        np.save(handle, similarity)
    found.save(run.axes)
    result.save(run.conflict)
    return result, found, similarity


def describe(store: SketchStore, halves: HalfGram, products: NDArray[np.float64]) -> ConflictResult:
    """Everything about the similarity but the matrix itself. `products` are those of the mean gradients, (T, T)."""
    rows = store.rows(halves.names)
    rel = _optional(reliability(halves))
    return ConflictResult(
        names=list(halves.names),
        sketch=str(store.info.layout.spec),
        sketch_numbers=store.numbers,
        parameters=store.info.layout.parameters,
        examples=[sum(row.examples) for row in rows],
        tokens=[sum(row.tokens) for row in rows],
        norms=np.sqrt(np.diag(products)).tolist(),
        losses=[row.loss for row in rows],
        reliability=rel,
        noise=_optional(noise(halves)),
        notes=_notes(halves.names, cosines(products), rel),
    )


def _notes(names: Sequence[str], similarity: NDArray[np.float64], rel: Sequence[float | None]) -> list[str]:
    notes = []
    for name, value in zip(names, rel, strict=True):
        if value is None:
            notes.append(f"`{name}` has a single calibration example: its reliability cannot be measured")
        elif value < UNRELIABLE:
            notes.append(f"`{name}`: most of its gradient is noise (reliability {value:.2f}); use more examples")
    for i, j in zip(*np.nonzero(np.triu(similarity > DUPLICATE, 1)), strict=True):
        cosine = similarity[i, j]
        notes.append(f"`{names[i]}` and `{names[j]}` have nearly the same gradient (cosine {cosine:.3f})")
    return notes


def _optional(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
