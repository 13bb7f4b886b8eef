"""Does conflict lie along curvature? Hessian eigenvectors at θ0 against conflict axes, gradients and chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merit.conflict.axes import centred
from merit.data.example import Encoded
from merit.diagnose.hessian import Flat, Hessian
from merit.diagnose.lanczos import Lanczos

Matrix = NDArray[np.float64]

RANDOM_VECTORS = 16


@dataclass(frozen=True)
class Directions:
    """max_ℓ |cos| with the eigenvectors, of three kinds of direction."""

    axes: list[float]
    tasks: list[float]
    random: list[float]

    @property
    def z_tasks(self) -> float | None:
        """How far conflict axes stand above a dataset's own gradient, in its standard deviations over datasets."""
        return _z(self.axes, self.tasks)

    @property
    def z_random(self) -> float | None:
        return _z(self.axes, self.random)


def alignment(
    hessian: Hessian,
    lanczos: Lanczos,
    coefficients: Matrix,
    datasets: Sequence[Sequence[Encoded]],
    similarity: Matrix,
    *,
    axes: int,
    centre: bool,
    batch_tokens: int,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Directions:
    """Conflict axis j lifted to parameter space is Σ_t v_tj g_t / ‖g_t‖, v_j the j-th eigenvector of the similarity.

    Args:
        coefficients: (m, k) of the eigenvectors in the Lanczos basis.
        datasets: rows that each dataset's gradient is taken on, in the order of `similarity`.
        similarity: (T, T) cosines of the run; its axes are those that the split used.
        axes: r.
    """
    values, vectors = np.linalg.eigh(centred(similarity) if centre else similarity)
    chosen = vectors[:, np.argsort(values)[::-1][:axes]]  # (T, r)
    lifted = np.zeros((chosen.shape[1], hessian.size), np.float32)
    tasks = []
    for t, rows in enumerate(datasets):
        gradient = hessian.gradient(rows, batch_tokens, advance)
        norm = _norm(gradient)
        if norm == 0:
            tasks.append(0.0)
            continue
        tasks.append(_largest_cosine(lanczos, coefficients, gradient))
        for axis in range(len(lifted)):
            lifted[axis] += np.float32(chosen[t, axis] / norm) * gradient
    rng = np.random.default_rng([seed, 1])
    random = [
        _largest_cosine(lanczos, coefficients, rng.standard_normal(hessian.size, np.float32))
        for _ in range(RANDOM_VECTORS)
    ]
    return Directions([_largest_cosine(lanczos, coefficients, row) for row in lifted], tasks, random)


def _largest_cosine(lanczos: Lanczos, coefficients: Matrix, vector: Flat) -> float:
    norm = _norm(vector)
    if norm == 0:
        return 0.0
    return float(np.abs(coefficients.T @ lanczos.dots(vector, rows=len(coefficients))).max() / norm)


def _norm(vector: Flat) -> float:
    wide = vector.astype(np.float64)
    return float(np.sqrt(wide @ wide))


def _z(values: Sequence[float], against: Sequence[float]) -> float | None:
    spread = float(np.std(against, ddof=1)) if len(against) > 1 else 0.0
    return float((np.mean(values) - np.mean(against)) / spread) if spread > 0 else None
