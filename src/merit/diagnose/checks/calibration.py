"""Calibration: would more calibration examples turn a gradient, or change the groups?"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from merit.base.record import Record
from merit.base.words import NONE, decimal, series, signed
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.models import BASE
from merit.diagnose.records import CheckResult

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench

PUBLISHED_COSINES = {50: 0.683, 100: 0.762, 150: 0.814, 200: 0.847, 300: 0.891, 500: 0.940, 700: 0.968}


class CalibrationPoint(Record):
    """Gradients of the first n examples against those of the most."""

    examples: int
    cosine: float  # mean over datasets
    cosine_sd: float  # over datasets
    rand: float  # adjusted Rand index of the groups


class CalibrationResult(CheckResult):
    """`calibration.json`."""

    largest: int  # examples of the reference, at most
    points: list[CalibrationPoint]
    datasets: int


def _depends(bench: Bench) -> Sequence[Any]:
    found = bench.conflict
    return [found.calibration, dict(found.tokens), found.axes, found.centre] if found is not None else []


def _run(bench: Bench) -> CalibrationResult:
    from merit.diagnose.calibration import calibration
    from merit.gradients.engine import GradientEngine
    from merit.gradients.sketch import SketchSpec

    conflict = bench.measured_conflict("calibration")
    config = conflict.calibration
    bench.live.set({BASE: 1.0})
    engine = GradientEngine(
        bench.live.model, SketchSpec.of(config), batch_tokens=config.batch_tokens, precision=bench.precision
    )
    examples = {
        name: bench.calibration_examples(data, config.examples)
        for name, data in zip(bench.names, bench.datasets, strict=True)
    }
    return calibration(
        engine, examples, conflict.tokens, axes=conflict.axes, centre=conflict.centre, progress=bench.progress
    )


def _rows(result: CalibrationResult) -> list[Row]:
    return [
        [
            f"cosine of {point.examples} examples to {result.largest}; Rand index of groups",
            f"{point.cosine:.3f} ± {point.cosine_sd:.3f}; {decimal(point.rand, 2)}",
            f"{PUBLISHED_COSINES[point.examples]:.3f} to 1,000" if point.examples in PUBLISHED_COSINES else NONE,
        ]
        for point in result.points
    ]


def _reading(result: CalibrationResult) -> Reading:
    stable = [point.examples for point in result.points if point.rand == 1]
    return Reading(
        f"Smaller sets are parts of the largest ({result.largest}), so the last cosines are high by construction. "
        f"Groups equal those of the largest set with {series([str(n) for n in stable])} examples.",
        "Where the solid line has flattened near 1, more examples would hardly turn a gradient; where the dashed line "
        "reaches 1, they would not change the groups.",
        f"cosine {PUBLISHED_COSINES[200]} ± 0.106 between 200 and 1,000 examples",
    )


def _figure(result: CalibrationResult, draw: ModuleType) -> Any:
    """Mean cosine to the largest calibration set, with its spread over datasets; the published curve beside it."""
    points = result.points
    ticks = sorted({*(point.examples for point in points), 100, 200, 500})
    return draw.Figure(
        id="calibration",
        title="Gradients and groups from few calibration examples",
        alt=f"Mean cosine of gradients from fewer examples to those from {result.largest}, its spread over datasets, "
        "and the agreement of the groups.",
        traces=[
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"cosine to {result.largest} examples",
                "x": [point.examples for point in points],
                "y": [point.cosine for point in points],
                "error_y": {"type": "data", "array": [point.cosine_sd for point in points], "color": "--accent"},
                "line": {"color": "--accent", "width": 2.5},
            },
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "groups: adjusted Rand index",
                "x": [point.examples for point in points],
                "y": [point.rand for point in points],
                "line": {"color": "--face-1", "width": 2, "dash": "dash"},
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "published: cosine to 1,000 examples",
                "x": list(PUBLISHED_COSINES),
                "y": list(PUBLISHED_COSINES.values()),
                "marker": {"color": "--muted", "symbol": "x-thin-open", "size": 8, "line": {"width": 2}},
            },
        ],
        layout={
            "xaxis": {
                "title": {"text": "calibration examples a dataset"},
                "type": "log",
                "tickvals": ticks,
                "ticktext": ticks,
            },
            "yaxis": {"title": {"text": "agreement"}},
            "legend": draw.LEGEND,
            "showlegend": True,
        },
        narrow={"xaxis.tickvals": ticks[::2], "xaxis.ticktext": ticks[::2]},
        table=draw.DataTable(
            ["examples", "cosine", "spread over datasets", "adjusted Rand index"],
            [
                [str(point.examples), decimal(point.cosine), decimal(point.cosine_sd), signed(point.rand, 2)]
                for point in points
            ],
        ),
        height=340,
    )


CHECK = Check(
    title="Were enough calibration examples used?",
    result=CalibrationResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    depends=_depends,
    order=5,
)
