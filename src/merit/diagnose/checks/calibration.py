"""Calibration: would more calibration examples turn a gradient, or change the groups?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.progress import SILENT, Counter, Progress
from merit.base.record import Record
from merit.base.words import NONE, decimal, series, signed
from merit.config.sections import centre_mark
from merit.conflict.axes import principal_axes
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.models import BASE
from merit.diagnose.records import CheckResult
from merit.split.splitters.pca import pca_partition

if TYPE_CHECKING:
    from merit.data.example import Encoded
    from merit.diagnose.bench import Bench, Conflict
    from merit.gradients.engine import GradientEngine

PUBLISHED_COSINES = {50: 0.683, 100: 0.762, 150: 0.814, 200: 0.847, 300: 0.891, 500: 0.940, 700: 0.968}
_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the largest calibration set


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
    return [found.calibration, dict(found.sizes), found.axes, centre_mark(found.centre)] if found is not None else []


def _run(bench: Bench) -> CalibrationResult:
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
    return calibration(engine, examples, conflict, bench.progress)


def calibration_sizes(largest: int) -> list[int]:
    """Numbers of examples to look at: shares of the largest, two at least."""
    return sorted({max(2, round(share * largest)) for share in _SHARES if largest >= 2})


def calibration(
    engine: GradientEngine, examples: Mapping[str, Sequence[Encoded]], conflict: Conflict, progress: Progress = SILENT
) -> CalibrationResult:
    """Cosine of each dataset's mean gradient over its first n examples to that over all of them, and how well the
    groups agree (adjusted Rand index: 1 the same groups, 0 as by chance), as in the paper's calibration table.

    The smaller sets are parts of the largest, so cosines near the largest n are high by construction.
    Gradients are sums, so one pass over the largest set gives all sizes.

    Args:
        examples: dataset → calibration examples in their fixed order.
        conflict: how the groups are made: what the cuts balance, the number of axes, the centring.
    """
    from sklearn.metrics import adjusted_rand_score

    from merit.gradients.store import HASHED

    names, layout = list(examples), engine.layout
    sizes = calibration_sizes(max(map(len, examples.values())))
    total = sum(len(example.input_ids) for rows in examples.values() for example in rows)
    means = np.zeros((len(sizes), len(names), min(HASHED, layout.width)))
    with progress.bar("calibration", total=total, unit="tok") as bar:
        counter = Counter(bar)
        for t, name in enumerate(names):
            counter.note(name)
            sums = np.zeros(means.shape[2])
            for row, (start, end) in enumerate(itertools.pairwise([0, *sizes])):
                if part := examples[name][start:end]:
                    sketch = engine.measure(name, part, counter).sums.sum(0, keepdims=True)
                    # Hashed to what fits in memory for any model.
                    sums += (layout.hash(sketch, HASHED) if layout.width > HASHED else sketch)[0].astype(np.float64)
                means[row, t] = sums
    norms = np.linalg.norm(means, axis=2, keepdims=True)
    unit = means / np.where(norms > 0, norms, 1)
    groups = []
    for rows in unit:
        found = principal_axes(names, rows @ rows.T, axes=conflict.axes, centre=conflict.centre)
        group_of = pca_partition(found, conflict.sizes, r=conflict.axes).group_of
        groups.append([group_of[name] for name in names])
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
