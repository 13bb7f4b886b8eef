"""Lanczos with full reorthogonalisation and its basis on disk: a kill costs one product, memory stays at three vectors.

scipy's `eigsh` keeps 2k + 1 vectors in memory (11 GB for ten eigenpairs of 135M parameters), and cannot be resumed.
The basis lies in one append-only file of float32 rows. Eigenvectors u_ℓ = Σ_j S_jℓ q_j are never formed: the check uses
only their inner products with other vectors, which follow from the q_jᵀx.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from merit.base.files import disk_errors, fsync_dir
from merit.base.kept import kept
from merit.base.record import Sealed
from merit.diagnose.hessian import Flat

_BLOCK = 2**18  # columns of the basis in one product: float32 within it, float64 across
TOLERANCE = 1e-3  # of a residual, relative to the largest eigenvalue


class LanczosState(Sealed):
    """The state beside the basis."""

    fingerprint: str
    size: int
    alphas: list[float]
    betas: list[float]  # betas[j] couples q_j and q_{j+1}
    digests: list[str]  # SHA-256 of every row


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs: values in descending order, and residuals ‖Hu − λu‖.

    Attributes:
        coefficients: (m, k) of the eigenvectors in the basis.
        dots: gives (m,) q_jᵀx.
        lowest: the smallest value of all.
    """

    values: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    residuals: NDArray[np.float64]
    lowest: float
    dots: Callable[[Flat], NDArray[np.float64]]

    def along(self, vector: Flat) -> NDArray[np.float64]:
        """(k,) u_ℓᵀx."""
        found: NDArray[np.float64] = self.coefficients.T @ self.dots(vector)
        return found

    def largest_cosine(self, vector: Flat) -> float:
        """max_ℓ |cos(u_ℓ, x)|; 0 for x = 0."""
        norm = np.linalg.norm(vector.astype(np.float64))
        return float(np.abs(self.along(vector)).max() / norm) if norm else 0.0


class Lanczos:
    """The Krylov basis of a symmetric matrix; the seed fixes the start vector.

    Args:
        folder: holds basis.f32 (rows of n float32) and state.json. Files of another fingerprint are removed.
    """

    def __init__(
        self, folder: Path, size: int, product: Callable[[Flat], Flat], *, seed: int = 0, fingerprint: str = ""
    ) -> None:
        self._folder = folder
        self._product = product
        self._size = size
        known = kept(folder / "state.json", LanczosState, {"fingerprint": fingerprint, "size": size}).record
        if known is not None and self._intact(known.digests):
            self.state = known
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            start = np.random.default_rng(seed).standard_normal(size, np.float32)
            digest = self._append(start / np.float32(np.linalg.norm(start.astype(np.float64))), row=0)
            self.state = LanczosState(fingerprint=fingerprint, size=size, alphas=[], betas=[], digests=[digest])
            self._save()

    @property
    def _basis(self) -> Path:
        return self._folder / "basis.f32"

    @property
    def steps(self) -> int:
        """Products made so far."""
        return len(self.state.alphas)

    @property
    def exhausted(self) -> bool:
        """Whether the Krylov space is complete: the next direction is zero."""
        scale = max((abs(alpha) for alpha in self.state.alphas), default=0.0)
        return self.steps == self._size or (bool(self.state.betas) and self.state.betas[-1] <= 1e-6 * scale)

    def step(self) -> None:
        """One product, orthogonalised against all rows (twice: once is not enough in float32), and appended.

        The basis is read three times, for it may be larger than the page cache.
        """
        row = self.steps
        q = self.rows(row + 1)
        w = self._product(np.array(q[row])).astype(np.float32)
        along = self.dots(w, row + 1)
        alpha = float(along[row])
        self._subtract(w, self._subtract(w, along))
        beta = float(np.linalg.norm(w.astype(np.float64)))
        if beta > 0:
            w /= np.float32(beta)
        digest, known = self._append(w, row=row + 1), self.state
        self.state = known.model_copy(
            update={
                "alphas": [*known.alphas, alpha],
                "betas": [*known.betas, beta],
                "digests": [*known.digests, digest],
            }
        )
        self._save()

    def ritz(self, count: int) -> Ritz:
        """The `count` algebraically largest eigenpairs, or all if there are fewer."""
        values, vectors = eigh_tridiagonal(np.array(self.state.alphas), np.array(self.state.betas[:-1]))
        order = np.argsort(values)[::-1][:count]
        residuals = np.abs(self.state.betas[-1] * vectors[-1, order])
        return Ritz(values[order], vectors[:, order], residuals, float(values.min()), self.dots)

    def converged(self, count: int) -> bool:
        """Whether the `count` largest eigenpairs have residuals below the tolerance."""
        if self.steps < count:
            return False
        found = self.ritz(count)
        return bool((found.residuals <= TOLERANCE * max(abs(found.values[0]), 1e-30)).all())

    def rows(self, count: int) -> NDArray[np.float32]:
        """The first `count` basis vectors, mapped from disk."""
        return np.memmap(self._basis, dtype="<f4", mode="r", shape=(count, self._size))

    def dots(self, vector: Flat, rows: int | None = None) -> NDArray[np.float64]:
        """(rows,) q_jᵀx, block by block."""
        count = self.steps if rows is None else rows
        basis = self.rows(count)
        total = np.zeros(count)
        for start in range(0, self._size, _BLOCK):
            total += basis[:, start : start + _BLOCK] @ vector[start : start + _BLOCK]
        return total

    def remove(self) -> None:
        """Deletes the basis."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _subtract(self, w: Flat, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Takes Σ_j c_j q_j from w, and gives (rows,) q_jᵀw of what is left, in one reading of the basis."""
        basis, factors = self.rows(len(coefficients)), coefficients.astype(np.float32)
        left = np.zeros(len(coefficients))
        for start in range(0, self._size, _BLOCK):
            part, block = basis[:, start : start + _BLOCK], w[start : start + _BLOCK]
            block -= factors @ part
            left += part @ block
        return left

    def _intact(self, digests: list[str]) -> bool:
        """Whether every row is as it was appended. The file as a whole may be longer: a kill left half a row."""
        if not self._basis.is_file():
            return False
        with self._basis.open("rb") as handle:
            rows = (handle.read(self._size * 4) for _ in digests)
            return [hashlib.sha256(row).hexdigest() for row in rows] == digests

    def _append(self, vector: Flat, *, row: int) -> str:
        data = vector.astype("<f4").tobytes()
        with disk_errors(self._basis), self._basis.open("r+b" if self._basis.exists() else "w+b") as handle:
            handle.seek(row * self._size * 4)  # over what a kill left after the last whole row
            handle.write(data)
            handle.flush()
        fsync_dir(self._folder)
        return hashlib.sha256(data).hexdigest()

    def _save(self) -> None:
        self.state.save(self._folder / "state.json")
