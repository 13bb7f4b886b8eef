"""The plane on which θ0, branches and joint training are shown: first two principal axes of their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from merit.diagnose.losses import Matrix
from merit.diagnose.models import BASE, MERGE

_TINY = 1e-12


@dataclass(frozen=True)
class Plane:
    """Points θ0 + Σ_i c_i δ_i with c = centre + x · axes[0] + y · axes[1].

    Attributes:
        labels: of the deltas.
        centre: (M,) coefficients of the plane's origin.
        axes: (2, M) coefficients of its unit directions; the second is zero where all points lie on a line.
        positions: label → (x, y), θ0's and the merge's too.
        off_plane: label → distance from the plane.
        share: of the points' variance that lies in the plane.
    """

    labels: list[str]
    centre: Matrix
    axes: Matrix
    positions: dict[str, tuple[float, float]]
    off_plane: dict[str, float]
    share: float

    @classmethod
    def of(cls, labels: Sequence[str], gram: Matrix) -> Plane:
        """From the inner products of the deltas, (M, M). The merge is a mean of branches and does not count.

        Signs are fixed: on each axis the first model lies at or right of θ0.
        """
        points = [i for i, label in enumerate(labels) if label != MERGE]
        # θ0 is a point like the others: its delta is zero.
        select = np.vstack([np.zeros(len(labels)), np.eye(len(labels))[points]])  # (points, M)
        centre = select.mean(0)
        offsets = select - centre
        values, vectors = np.linalg.eigh(offsets @ gram @ offsets.T)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        axes = np.zeros((2, len(labels)))
        for axis in range(min(2, len(values))):
            if values[axis] > _TINY * values[0]:
                axes[axis] = vectors[:, axis] @ offsets / np.sqrt(values[axis])
                lead = (select[1] - select[0]) @ gram @ axes[axis]
                axes[axis] *= np.sign(lead) or 1.0
        positions, off = {}, {}
        where = {BASE: np.zeros(len(labels)), **dict(zip(labels, np.eye(len(labels)), strict=True))}
        for label, coefficients in where.items():
            offset = coefficients - centre
            x, y = (float(value) for value in axes @ gram @ offset)
            positions[label] = (x, y)
            off[label] = float(np.sqrt(max(0.0, offset @ gram @ offset - x * x - y * y)))
        total = float(values.sum())
        return cls(list(labels), centre, axes, positions, off, float(values[:2].sum() / total) if total else 0.0)

    def coefficients(self, x: float, y: float) -> dict[str, float]:
        """Coefficients of the checkpoints, θ0's included, at the point (x, y)."""
        moved = self.centre + x * self.axes[0] + y * self.axes[1]
        return {BASE: float(1 - moved.sum()), **dict(zip(self.labels, moved.tolist(), strict=True))}
