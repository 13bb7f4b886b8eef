"""Landscape: what does the loss look like on the plane through θ0, branches and joint training?"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.errors import InputError
from merit.base.words import NONE, decimal, plural
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.plane import Plane
from merit.diagnose.records import CheckResult

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench

_MARGIN = 0.35  # on every side, as a share of the span of the models
_SCALE = [[0, "--agree-2"], [0.35, "--agree-1"], [0.6, "--neutral"], [0.8, "--fight-1"], [1, "--fight-2"]]


class LandscapeResult(CheckResult):
    """`landscape.json`: loss on the plane of the first two principal axes through θ0, branches and joint."""

    x: list[float]
    y: list[float]
    loss: list[list[float]]  # rows are y
    models: dict[str, tuple[float, float]]
    off_plane: dict[str, float]  # distance of each model from the plane
    examples: int


def _run(bench: Bench) -> LandscapeResult:
    """Mean held-out loss on a grid that holds all models, with a margin.

    Raises:
        InputError: all models lie on one line with θ0, so there is no plane.
    """
    live, examples, grid = bench.live, bench.held_out, bench.config.grid
    plane = Plane.of(bench.moves.labels, bench.moves.gram)
    if not plane.axes[1].any():
        raise InputError("θ0 and all models lie on one line: there is no plane to draw")
    xs, ys = (_range([place[axis] for place in plane.positions.values()], grid) for axis in (0, 1))
    with bench.progress.bar("landscape", total=grid * grid, unit="point") as bar:

        def row(y: float) -> list[float]:
            found = []
            for x in xs:
                live.set(plane.coefficients(x, y))
                losses = examples.measure(live.model, f"the point ({x:.3g}, {y:.3g}) of the plane")
                found.append(float(examples.resampler.mean(losses[None, :])[0]))
            return found

        loss = []
        for index, y in enumerate(ys):
            loss.append(bench.journal.get(f"row {index}", partial(row, y)))
            bar.update((index + 1) * grid)
    return LandscapeResult(
        x=xs, y=ys, loss=loss, models=plane.positions, off_plane=plane.off_plane, examples=len(examples.rows)
    )


def _range(values: list[float], count: int) -> list[float]:
    margin = _MARGIN * (max(values) - min(values))
    found: list[float] = np.linspace(min(values) - margin, max(values) + margin, count).tolist()
    return found


def _rows(result: LandscapeResult) -> list[Row]:
    flat = [value for row in result.loss for value in row]
    return [["loss on the plane, lowest … highest", f"{decimal(min(flat))} … {decimal(max(flat))}", NONE]]


def _reading(result: LandscapeResult) -> Reading:
    far = max(result.off_plane.values())
    return Reading(
        f"A coarse grid of {len(result.x)} × {len(result.y)} points over "
        f"{plural(result.examples, 'held-out example')}. Models are shown where they project; the farthest lies "
        f"{decimal(far, 2)} off the plane.",
        "Blue is low loss and orange is high, as on a map; models inside one blue region, with no orange between "
        "them, share a basin.",
    )


def _figure(result: LandscapeResult, draw: ModuleType) -> Any:
    """Contours of the held-out loss with every model in its place."""
    places = list(result.models)
    labels = ["θ0" if place == "base" else place for place in places]
    points = [result.models[place] for place in places]
    contour = {
        "type": "contour",
        "x": result.x,
        "y": result.y,
        "z": [[round(value, 4) for value in row] for row in result.loss],
        "colorscale": _SCALE,
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0.7, "color": "--muted"},
        "colorbar": {"thickness": 10, "outlinewidth": 0, "len": 0.9},
        "hovertemplate": "loss %{z:.3f}<extra></extra>",
    }
    marks = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "text": [draw.plotly_text(label) for label in labels],
        "textposition": draw.place_labels(points, labels, size=(420, 300)),
        "marker": {
            "size": 11,
            "color": "--ink",
            "symbol": [draw.model_symbol(place) for place in places],
            "line": {"width": 2, "color": "--ink"},
        },
        "hovertemplate": "<b>%{text}</b><extra></extra>",
    }
    return draw.Figure(
        id="landscape",
        title="Held-out loss on the plane through θ0, branches and joint training",
        alt=f"Contour map of the loss on a coarse grid of {len(result.x)} by {len(result.y)} points, with "
        f"{len(labels)} models marked. One valley that holds them all is one basin.",
        traces=[contour, marks],
        layout={
            "xaxis": {"title": {"text": "first axis, in units of ‖θ − θ0‖"}, "showgrid": False},
            "yaxis": {"title": {"text": "second axis"}, "showgrid": False},
        },
        table=draw.DataTable(
            ["model", "x", "y", "distance from the plane"],
            [
                [label, decimal(x, 2), decimal(y, 2), decimal(result.off_plane[label], 2)]
                for label, (x, y) in result.models.items()
            ],
        ),
        height=460,
    )


CHECK = Check(
    title="What does the valley look like from above?",
    result=LandscapeResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    uses=("examples", "grid"),
    order=6,
)
