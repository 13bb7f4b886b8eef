"""Displacement: how far has each model moved from θ0, where, and in which direction?"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from merit.base.record import Record
from merit.base.words import NONE, decimal, plural
from merit.diagnose.check import Check, Part, Reading, Row
from merit.diagnose.models import JOINT, MERGE
from merit.diagnose.records import CheckResult

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench


class ModelDisplacement(Record):
    """How far one model is from θ0."""

    model: str
    total: float  # ‖θ − θ0‖
    layers: dict[str, float]  # part of the model → norm; their squares add up to total²
    plane: tuple[float, float]  # on the first two principal axes of θ0, branches and joint


class Trajectories(Record):
    """The ways from θ0, from sketches: norms are estimates (about 1% off)."""

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
    from merit.diagnose.displacement import displacement
    from merit.diagnose.trajectory import trajectories

    models = bench.models
    ways = trajectories(models.trajectories, models.branch_labels, models.weights) if models.trajectories else None
    return displacement(bench.moves).model_copy(update={"trajectories": ways})


def _rows(result: DisplacementResult) -> list[Row]:
    by_model = {item.model: item.total for item in result.models}
    branches = [i for i, item in enumerate(result.models) if item.model not in (MERGE, JOINT)]
    cosines = [result.cosines[i][j] for i in branches for j in branches if i < j]
    rows = [[f"‖θ − θ0‖ of {label}", decimal(total), NONE] for label, total in by_model.items()]
    rows.append(["cosines between branches", f"{decimal(min(cosines), 2)} … {decimal(max(cosines), 2)}", NONE])
    if result.ratio is not None:
        rows.append(["joint ÷ merge", decimal(result.ratio, 2), "2.4–2.9"])
    if result.trajectories is not None and result.trajectories.ratio:
        ratio = result.trajectories.ratio
        span = f"{decimal(ratio[0], 2)} … {decimal(ratio[-1], 2)}"
        rows.append([f"joint ÷ merge along the way, {len(ratio)} moments", span, "2.4–2.9"])
    return rows


def _reading(result: DisplacementResult) -> Reading:
    branches = [i for i, item in enumerate(result.models) if item.model.startswith("branch")]
    cosines = [result.cosines[i][j] for i in branches for j in branches if i < j]
    found = f"The updates of two branches have cosines of {decimal(min(cosines), 2)} to {decimal(max(cosines), 2)}."
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
