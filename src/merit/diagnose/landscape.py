"""The loss on a plane through θ0, branches and joint training: what the basin looks like."""

from __future__ import annotations

from functools import partial

import numpy as np

from merit.base.errors import InputError
from merit.base.progress import SILENT, Progress
from merit.diagnose.journal import Journal
from merit.diagnose.live import LiveModel
from merit.diagnose.losses import LossSet
from merit.diagnose.plane import Plane
from merit.diagnose.records import LandscapeResult

_MARGIN = 0.35  # of the span of the models, on every side


def landscape(
    live: LiveModel,
    plane: Plane,
    examples: LossSet,
    *,
    grid: int,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> LandscapeResult:
    """Mean loss on a grid of `grid` × `grid` points that holds all models, with a margin.

    Raises:
        InputError: all models lie on one line with θ0, so there is no plane.
        StageError: a loss is not finite.
    """
    journal = journal or Journal()
    if not plane.axes[1].any():
        raise InputError("θ0 and all models lie on one line: there is no plane to draw")
    xs, ys = (_range([place[axis] for place in plane.positions.values()], grid) for axis in (0, 1))
    with progress.bar("landscape", total=grid * grid, unit="point") as bar:

        def row(y: float) -> list[float]:
            found = []
            for x in xs:
                live.set(plane.coefficients(x, y))
                losses = examples.measure(live.model, f"the point ({x:.3g}, {y:.3g}) of the plane")
                found.append(float(examples.resampler.mean(losses[None, :])[0]))
            return found

        loss = []
        for index, y in enumerate(ys):
            loss.append(journal.get(f"row {index}", partial(row, y)))
            bar.update((index + 1) * grid)
    return LandscapeResult(
        fingerprint="",
        seconds=0,
        x=xs,
        y=ys,
        loss=loss,
        models=plane.positions,
        off_plane=plane.off_plane,
        examples=len(examples.rows),
    )


def _range(values: list[float], count: int) -> list[float]:
    span = max(values) - min(values)
    found: list[float] = np.linspace(min(values) - _MARGIN * span, max(values) + _MARGIN * span, count).tolist()
    return found
