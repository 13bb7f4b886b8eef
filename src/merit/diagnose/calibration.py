"""How many calibration examples are enough: gradients and groups from few against those from many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from merit.base.progress import SILENT, Counter, Progress
from merit.conflict.axes import principal_axes
from merit.data.example import Encoded
from merit.diagnose.checks.calibration import CalibrationPoint, CalibrationResult
from merit.gradients.engine import GradientEngine
from merit.gradients.store import HASHED
from merit.split.splitters.pca import pca_partition

Matrix = NDArray[np.float64]
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def calibration_sizes(largest: int) -> list[int]:
    """Numbers of examples to look at: shares of the largest, two at least."""
    return sorted({max(2, round(share * largest)) for share in SHARES if largest >= 2})


def calibration(
    engine: GradientEngine,
    examples: Mapping[str, Sequence[Encoded]],
    tokens: Mapping[str, int],
    *,
    axes: int,
    centre: bool,
    progress: Progress = SILENT,
) -> CalibrationResult:
    """Cosine of each dataset's mean gradient over its first n examples to that over all of them, and how well the
    groups agree (adjusted Rand index: 1 the same groups, 0 as by chance), as the paper's calibration table.

    The smaller sets are parts of the largest, as published, so cosines near the largest n are high by construction.
    Gradients are sums, so one pass over the largest set gives all sizes.

    Args:
        examples: dataset → calibration examples in their fixed order.
        tokens: dataset → planned tokens, which the groups are balanced by.
    """
    names = list(examples)
    sizes = calibration_sizes(max(map(len, examples.values())))
    total = sum(len(example.input_ids) for rows in examples.values() for example in rows)
    with progress.bar("calibration", total=total, unit="tok") as bar:
        counter = Counter(bar)
        means = np.zeros((len(sizes), len(names), min(HASHED, engine.layout.width)))
        for t, name in enumerate(names):
            counter.note(name)
            sums = np.zeros(means.shape[2])
            start = 0
            for row, size in enumerate(sizes):
                part = list(examples[name][start:size])
                if part:
                    sums = sums + _sketch(engine, name, part, counter)
                    start += len(part)
                means[row, t] = sums
    norms = np.linalg.norm(means, axis=2, keepdims=True)
    unit = means / np.where(norms > 0, norms, 1)
    groups = [_groups(names, rows, tokens, axes, centre) for rows in unit]
    points = []
    for row, size in enumerate(sizes):
        cosines = np.einsum("tn,tn->t", unit[row], unit[-1])
        points.append(
            CalibrationPoint(
                examples=size,
                cosine=float(cosines.mean()),
                cosine_sd=float(cosines.std(ddof=1)) if len(names) > 1 else 0.0,
                rand=float(adjusted_rand_score(groups[-1], groups[row])),
            )
        )
    return CalibrationResult(largest=sizes[-1], points=points, datasets=len(names))


def _sketch(engine: GradientEngine, name: str, examples: Sequence[Encoded], advance: Callable[[int], None]) -> Matrix:
    """Gradient sum of a few examples, hashed to what fits in memory for any model."""
    found = engine.measure(name, examples, advance).sums.sum(0, keepdims=True)
    if engine.layout.width > HASHED:
        found = engine.layout.hash(found, HASHED)
    wide: Matrix = found[0].astype(np.float64)
    return wide


def _groups(names: Sequence[str], unit: Matrix, tokens: Mapping[str, int], axes: int, centre: bool) -> list[int]:
    found = principal_axes(names, unit @ unit.T, axes=axes, centre=centre)
    partition = pca_partition(found, tokens, r=axes)
    return [partition.group_of[name] for name in names]
