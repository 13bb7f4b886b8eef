"""Displacement: how far has each model moved from θ0, where, and in which direction?"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.arrays import read_array
from merit.base.errors import InputError
from merit.base.progress import SILENT, Progress
from merit.base.record import Record
from merit.base.words import NONE, decimal, plural
from merit.diagnose.check import Check, Part, Reading, Row
from merit.diagnose.losses import Matrix
from merit.diagnose.models import BASE, JOINT, MERGE
from merit.diagnose.plane import Plane
from merit.diagnose.records import CheckResult

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench
    from merit.diagnose.live import Aligned

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_log = logging.getLogger(__name__)


class ModelDisplacement(Record):
    """How far one model is from θ0."""

    model: str
    total: float  # ‖θ − θ0‖
    layers: dict[str, float]  # part of the model → norm; their squares add up to total²
    plane: tuple[float, float]  # on the first two principal axes of θ0, branches and joint


class Trajectories(Record):
    """The paths from θ0, from sketches: norms are estimates (about 1% off)."""

    moments: list[float]  # shares of the training, up to 1
    norms: dict[str, list[float]]  # model → ‖θ − θ0‖ at each moment
    ratio: list[float] | None  # joint ÷ merge at each moment
    points: dict[str, list[tuple[float, float]]]  # model → positions on the plane, θ0 at (0, 0)
    share: float  # of the variance that the plane holds


class DisplacementResult(CheckResult):
    """`displacement.json`. Cosines are in the order of `models`."""

    models: list[ModelDisplacement]
    cosines: list[list[float]]  # between θ − θ0 of any two models
    ratio: float | None  # joint ÷ merge
    plane_share: float  # share of the variance that the plane holds
    base_norm: float  # ‖θ0‖
    trajectories: Trajectories | None = None  # with `train.snapshots` only


def _run(bench: Bench) -> DisplacementResult:
    models = bench.models
    ways = trajectories(models.trajectories, models.branch_labels, models.weights) if models.trajectories else None
    return displacement(bench.moves).model_copy(update={"trajectories": ways})


@dataclass(frozen=True)
class Moves:
    """Inner products of all deltas δ = θ − θ0: for each part of the model an (M, M) matrix in the order of `labels`."""

    labels: list[str]
    parts: Mapping[str, Matrix]
    base_norm: float

    @property
    def gram(self) -> Matrix:
        """(M, M): ⟨δ_i, δ_j⟩ over the whole model."""
        total: Matrix = np.sum(list(self.parts.values()), axis=0)
        return total


def measure_moves(aligned: Aligned, progress: Progress = SILENT) -> Moves:
    """Streams all checkpoints once, float64: float32 sums over 134M numbers read 2.3% low.

    Raises:
        InputError: a model that is exactly θ0; a weight that is not finite.
    """
    labels = [label for label in aligned.tensors if label != BASE]
    parts: dict[str, Matrix] = {}
    squares = 0.0
    total = sum(int(np.prod(shape)) for shape in aligned.shapes.values())
    done = 0
    with progress.bar("displacement", total=total, unit="parameter") as bar:
        for name, _, block in aligned.blocks():
            base = block[BASE]
            deltas = np.stack([block[label] - base for label in labels])
            part = part_of(name)
            parts[part] = parts.get(part, np.zeros((len(labels), len(labels)))) + deltas @ deltas.T
            squares += float(base @ base)
            done += base.size
            bar.update(done, note=name)
    moves = Moves(labels, parts, float(np.sqrt(squares)))
    gram = moves.gram
    if not np.isfinite(gram).all():
        raise InputError("a checkpoint holds weights that are not finite")
    for label, square in zip(labels, np.diag(gram), strict=True):
        if square == 0:
            raise InputError(f"`{label}` has not moved from θ0 (‖θ − θ0‖ = 0): there is nothing to diagnose")
    return moves


def displacement(moves: Moves) -> DisplacementResult:
    """Norms by part, cosines, the ratio joint ÷ merge (published: 2.4–2.9), and where each model is on the plane."""
    gram = moves.gram
    norms = np.sqrt(np.diag(gram))
    by_part = {
        part: np.sqrt(np.maximum(np.diag(matrix), 0)) for part, matrix in sorted(moves.parts.items(), key=_order)
    }
    plane = Plane.of(moves.labels, gram)
    index = {label: i for i, label in enumerate(moves.labels)}
    ratio = float(norms[index[JOINT]] / norms[index[MERGE]]) if {JOINT, MERGE} <= index.keys() else None
    return DisplacementResult(
        models=[
            ModelDisplacement(
                model=label,
                total=float(norms[i]),
                layers={part: float(column[i]) for part, column in by_part.items()},
                plane=plane.positions[label],
            )
            for label, i in index.items()
        ],
        cosines=np.clip(gram / np.outer(norms, norms), -1, 1).tolist(),
        ratio=ratio,
        plane_share=plane.share,
        base_norm=moves.base_norm,
    )


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to: `layer 3`, `embeddings`, `head`, `norm` or `other`."""
    layer = _LAYER.search(name)
    if layer and not name.startswith(("model.vision", "model.visual")):
        return f"layer {int(layer[1])}"
    if "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
        return "embeddings"
    if "lm_head" in name:
        return "head"
    return "norm" if "norm" in name or "ln_f" in name else "other"


def _order(item: tuple[str, object]) -> tuple[int, int]:
    part = item[0]
    if part.startswith("layer "):
        return 1, int(part.removeprefix("layer "))
    return (0 if part == "embeddings" else 2), 0


def trajectories(folders: Mapping[str, Path], branches: Sequence[str], weights: Sequence[float]) -> Trajectories | None:
    """Distances from θ0 and positions on the plane, moment by moment, from the sketches that `train.snapshots` leaves.

    A sketch is linear and a merge is a weighted mean, so the sketch of the merge at any moment is the weighted mean of
    the branches' sketches. None if a branch kept no snapshots or one is damaged: nothing else depends on them.

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


def _deltas(folder: Path) -> Matrix | None:
    """(moments, width) sketches of θ − θ0; None if the first is missing or one cannot be read."""
    files = sorted(folder.glob("[0-9][0-9][0-9].npy"))
    if not files or files[0].stem != "000" or len(files) != int(files[-1].stem) + 1:
        return None
    rows = []
    for file in files:
        try:
            rows.append(read_array(file))
        except InputError as error:
            _log.warning("%s; the branches' paths are left out", error)
            return None
        if rows[-1].shape != rows[0].shape or rows[-1].ndim != 1:
            _log.warning("%s: not a snapshot of this training; the branches' paths are left out", file)
            return None
    stacked = np.stack(rows)
    deltas: Matrix = stacked[1:] - stacked[0]
    return deltas


def _plane(paths: Mapping[str, Matrix]) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Positions on the first two principal axes of all moments but the merge's, θ0 at the origin; and their share."""
    data = np.concatenate([path for label, path in paths.items() if label != MERGE])
    mean = data.mean(0)
    _, values, axes = np.linalg.svd(data - mean, full_matrices=False)
    axes = axes[:2]
    signs = np.where((axes @ data.T).sum(1) < 0, -1.0, 1.0)
    axes = axes * signs[:, None]
    points = {label: [(float(x), float(y)) for x, y in path @ axes.T] for label, path in paths.items()}
    return points, float((values[:2] ** 2).sum() / max((values**2).sum(), 1e-300))


def _rows(result: DisplacementResult) -> list[Row]:
    low, high = _branch_cosines(result)
    rows = [[f"‖θ − θ0‖ of {item.model}", decimal(item.total), NONE] for item in result.models]
    rows.append(["cosines between branches", f"{low} … {high}", NONE])
    if result.ratio is not None:
        rows.append(["joint ÷ merge", decimal(result.ratio, 2), "2.4–2.9"])
    if result.trajectories is not None and result.trajectories.ratio:
        ratio = result.trajectories.ratio
        span = f"{decimal(ratio[0], 2)} … {decimal(ratio[-1], 2)}"
        rows.append([f"joint ÷ merge along the way, {len(ratio)} moments", span, "2.4–2.9"])
    return rows


def _branch_cosines(result: DisplacementResult) -> tuple[str, str]:
    """The lowest and the highest cosine between the updates of two branches."""
    branches = [i for i, item in enumerate(result.models) if item.model.startswith("branch")]
    cosines = [result.cosines[i][j] for i in branches for j in branches if i < j]
    return decimal(min(cosines), 2), decimal(max(cosines), 2)


def _reading(result: DisplacementResult) -> Reading:
    low, high = _branch_cosines(result)
    found = f"The updates of two branches have cosines of {low} to {high}."
    if result.ratio is not None:
        found += (
            f" The merge stays {decimal(result.ratio, 2)} times closer to θ0 than joint training. "
            "Averaging and fewer steps a branch both shorten the way; closeness alone is no merit."
        )
    return Reading(
        found,
        "Each line is one model's distance from θ0, part by part; the merge lies below its branches because what they "
        "disagree about cancels in the average.",
        "the merge stays 2.4–2.9 times closer to θ0 than joint training",
    )


def _figure(result: DisplacementResult, draw: ModuleType) -> Any:
    """‖θ − θ0‖ of every part of the model."""
    parts = list(result.models[0].layers)
    traces = []
    for item in result.models:
        branch = item.model.startswith("branch")
        own = _colour(item.model, draw)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": draw.plotly_text(item.model),
                "x": list(range(len(parts))),
                "y": [item.layers[part] for part in parts],
                "line": {"color": own, "width": 1.2 if branch else 2.5, "dash": "dot" if branch else "solid"},
                "marker": {"size": 4 if branch else 6, "color": own},
                "hovertemplate": f"<b>{draw.plotly_text(item.model)}</b>: %{{y:.4f}}<extra></extra>",
            }
        )
    return draw.Figure(
        id="displacement",
        title="Distance from θ0, part by part",
        alt=f"Lines of the distance from θ0 in {len(parts)} parts of the model, for {len(traces)} models.",
        traces=traces,
        layout={
            "xaxis": draw.column_axis([part.removeprefix("layer ") for part in parts], grid=True),
            "yaxis": {"title": {"text": "‖θ − θ0‖"}, "rangemode": "tozero"},
            "legend": draw.LEGEND,
            "showlegend": True,
        },
        table=draw.DataTable(
            ["part", *(item.model for item in result.models)],
            [
                *([part, *(decimal(item.layers[part], 4) for item in result.models)] for part in parts),
                ["whole model", *(decimal(item.total, 4) for item in result.models)],
            ],
        ),
        height=340,
    )


def _ways_reading(result: DisplacementResult) -> Reading | None:
    ways = result.trajectories
    if ways is None:
        return None
    found = (
        f"The paths at {plural(len(ways.moments), 'moment')} of the training, from sketches of the weights. The "
        "merge's is the weighted mean of the branches' at each moment: where it would have been, had one merged then."
    )
    if ways.ratio:
        found += (
            f" Joint training is {decimal(min(ways.ratio), 2)} to {decimal(max(ways.ratio), 2)} times as far from θ0 "
            "as the merge along the way."
        )
    return Reading(
        found,
        "Every path begins at θ0, and each mark is a moment of the training; branches that fan out learn different "
        "things, and the merge ends between them.",
        "joint training is 2.4–2.9 times as far from θ0 as the merge, over 1–3 epochs",
    )


def _ways_figure(result: DisplacementResult, draw: ModuleType) -> Any:
    """Each model's path on the plane of the first two axes of all moments; θ0 is where they begin."""
    ways = result.trajectories
    if ways is None:
        return None
    traces = []
    for label, points in ways.points.items():
        branch = label.startswith("branch")
        own = _colour(label, draw)
        path = [(0.0, 0.0), *points]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": draw.plotly_text(label),
                "x": [x for x, _ in path],
                "y": [y for _, y in path],
                "line": {"color": own, "width": 1.5 if branch else 2.5, "dash": "dot" if branch else "solid"},
                "marker": {
                    "color": own,
                    "size": [9, *([5] * (len(points) - 1)), 10 if branch else 13],
                    "symbol": "star" if label == "merge" else "circle",
                },
                "text": ["θ0", *(f"{moment:.0%} of the training" for moment in ways.moments)],
                "hovertemplate": f"<b>{draw.plotly_text(label)}</b>, %{{text}}<extra></extra>",
            }
        )
    ratio = [decimal(value, 2) for value in ways.ratio] if ways.ratio else [NONE] * len(ways.moments)
    return draw.Figure(
        id="ways",
        title="The way from θ0, while training",
        alt=f"Paths of {len(traces)} models from θ0 on a plane that holds {ways.share:.0%} of the variance of all "
        "moments. Branches part; the merge stays between them.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "first axis, in units of ‖θ − θ0‖"}},
            "yaxis": {"title": {"text": "second axis"}, "scaleanchor": "x"},
            "legend": draw.LEGEND,
            "showlegend": True,
        },
        table=draw.DataTable(
            ["share of the training", *(f"‖θ − θ0‖ of {label}" for label in ways.norms), "joint ÷ merge"],
            [
                [f"{moment:.0%}", *(decimal(norms[index], 3) for norms in ways.norms.values()), ratio[index]]
                for index, moment in enumerate(ways.moments)
            ],
        ),
        height=440,
    )


def _colour(label: str, draw: ModuleType) -> str:
    """Branches stand beside each other here, so each has its group's colour."""
    own = draw.group_colour(int(label.split()[-1])) if label.startswith("branch") else draw.model_colour(label)
    return str(own)


CHECK = Check(
    title="How far did each model move?",
    result=DisplacementResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    also=(Part(title="Which way did they go?", reading=_ways_reading, figure=_ways_figure),),
    order=0,  # it is cheap, and notices branches that have not moved before anything long begins
)
