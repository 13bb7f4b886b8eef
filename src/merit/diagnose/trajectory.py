"""The way of every branch from θ0, of the merge that each moment would have given, and of joint training.

Read from the sketches that `train.snapshots` leaves. A merge is a weighted mean, and a sketch is linear: the sketch of
the merge at any moment is the weighted mean of the branches' sketches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merit.diagnose.checks.displacement import Trajectories
from merit.diagnose.models import JOINT, MERGE

_log = logging.getLogger(__name__)


def trajectories(folders: Mapping[str, Path], branches: Sequence[str], weights: Sequence[float]) -> Trajectories | None:
    """Distances from θ0 and positions on the plane, moment by moment; None where a branch kept no snapshots, or
    one is damaged: nothing else rests on them, and to train for hours for a figure is the user's choice.

    Args:
        folders: label → folder of 000.npy, 001.npy, … ; joint training may be among them.
        branches: labels of the branches, in the order of `weights`.
    """
    paths = {label: _deltas(folder) for label, folder in folders.items()}
    if any(paths[label] is None for label in branches):
        return None
    found = {label: path for label, path in paths.items() if path is not None}
    moments = min(map(len, found.values()))
    if moments == 0 or any(len(path) != moments for path in found.values()):
        return None
    found[MERGE] = np.tensordot(np.asarray(weights), np.stack([found[label] for label in branches]), axes=1)
    norms = {label: np.linalg.norm(path, axis=1) for label, path in found.items()}
    points, share = _plane(found)
    ratio = (norms[JOINT] / np.maximum(norms[MERGE], 1e-300)).tolist() if JOINT in found else None
    return Trajectories(
        moments=[(index + 1) / moments for index in range(moments)],
        norms={label: values.tolist() for label, values in norms.items()},
        ratio=ratio,
        points=points,
        share=share,
    )


def _deltas(folder: Path) -> NDArray[np.float64] | None:
    """(moments, width) sketches of θ − θ0; None without a start, or where one cannot be read."""
    files = sorted(folder.glob("[0-9][0-9][0-9].npy"))
    if not files or files[0].stem != "000" or len(files) != int(files[-1].stem) + 1:
        return None
    rows = []
    for file in files:
        try:
            rows.append(np.asarray(np.load(file, allow_pickle=False), dtype=np.float64))
        except (OSError, ValueError, EOFError) as error:
            _log.warning("%s: a damaged snapshot (%s); the ways of the branches are left out", file, error)
            return None
        if rows[-1].shape != rows[0].shape or rows[-1].ndim != 1:
            _log.warning("%s: no snapshot of this training; the ways of the branches are left out", file)
            return None
    stacked = np.stack(rows)
    deltas: NDArray[np.float64] = stacked[1:] - stacked[0]
    return deltas


def _plane(paths: Mapping[str, NDArray[np.float64]]) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Positions on the first two principal axes of all moments but the merge's, θ0 at the origin; and their share."""
    data = np.concatenate([path for label, path in paths.items() if label != MERGE])
    mean = data.mean(0)
    _, values, axes = np.linalg.svd(data - mean, full_matrices=False)
    axes = axes[:2]
    signs = np.where((axes @ data.T).sum(1) < 0, -1.0, 1.0)
    axes = axes * signs[:, None]
    points = {label: [(float(x), float(y)) for x, y in path @ axes.T] for label, path in paths.items()}
    return points, float((values[:2] ** 2).sum() / max((values**2).sum(), 1e-300))
