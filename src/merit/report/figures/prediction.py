"""Displacement by layer, curvature against conflict, and how many calibration examples are enough."""

from __future__ import annotations

from merit.diagnose.records import CalibrationResult, CurvatureResult, DisplacementResult, GainResult
from merit.diagnose.words import PUBLISHED_COSINES
from merit.report.figure import DataTable, Figure
from merit.report.figures.basin import between, colour, whiskers
from merit.report.figures.style import LEGEND, column_axis, group_colour, row_axis
from merit.report.page import plotly_text
from merit.report.words import decimal, signed


def displacement_figure(result: DisplacementResult) -> Figure:
    """‖θ − θ0‖ of every part of the model."""
    parts = list(result.models[0].layers)
    traces = []
    for item in result.models:
        branch = item.model.startswith("branch")
        own = group_colour(int(item.model.split()[-1])) if branch else colour(item.model)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly_text(item.model),
                "x": list(range(len(parts))),
                "y": [item.layers[part] for part in parts],
                "line": {"color": own, "width": 1.2 if branch else 2.5, "dash": "dot" if branch else "solid"},
                "marker": {"size": 4 if branch else 6, "color": own},
                "hovertemplate": f"<b>{plotly_text(item.model)}</b>: %{{y:.4f}}<extra></extra>",
            }
        )
    return Figure(
        id="displacement",
        title="Distance from θ0, part by part",
        alt=f"Lines of the distance from θ0 in {len(parts)} parts of the model, for {len(traces)} models.",
        traces=traces,
        layout={
            "xaxis": column_axis([part.removeprefix("layer ") for part in parts], grid=True),
            "yaxis": {"title": {"text": "‖θ − θ0‖"}, "rangemode": "tozero"},
            "legend": LEGEND,
            "showlegend": True,
        },
        table=DataTable(
            ["part", *(item.model for item in result.models)],
            [
                *([part, *(decimal(item.layers[part], 4) for item in result.models)] for part in parts),
                ["whole model", *(decimal(item.total, 4) for item in result.models)],
            ],
        ),
        height=340,
    )


def losses_figure(result: GainResult) -> Figure:
    """Training against held-out loss of every model."""
    labels = list(result.held_out.losses)
    traces = []
    for face, found, shade in (("training", result.train, "--face-1"), ("held-out", result.held_out, "--face-0")):
        values = [found.losses[label] for label in labels]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": face,
                "x": [item.value for item in values],
                "y": list(range(len(labels))),
                "error_x": whiskers(values, shade),
                "marker": {"size": 10, "color": shade, "symbol": "circle" if face == "held-out" else "diamond"},
                "hovertemplate": f"{face} loss %{{x:.3f}}<extra></extra>",
            }
        )
    return Figure(
        id="train-held-out",
        title="Training and held-out loss of every model",
        alt=f"Training and held-out loss of {len(labels)} models with 95% intervals. Further left is better.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "loss, nats a token  (← better)"}},
            "yaxis": row_axis(["θ0" if label == "base" else label for label in labels], grid=True),
            "legend": LEGEND,
            "showlegend": True,
        },
        table=DataTable(
            ["model", "training", "95% interval", "held-out", "95% interval"],
            [
                [
                    "θ0" if label == "base" else label,
                    decimal(result.train.losses[label].value),
                    between(result.train.losses[label]),
                    decimal(result.held_out.losses[label].value),
                    between(result.held_out.losses[label]),
                ]
                for label in labels
            ],
        ),
        height=140 + 36 * len(labels),
    )


def alignment_figure(result: CurvatureResult) -> Figure:
    """Largest |cos| with the top eigenvectors: conflict axes, gradients, random directions."""
    kinds = [("conflict axes", result.axes), ("datasets' gradients", result.tasks), ("random", result.random)]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": values,
            "y": [row] * len(values),
            "marker": {
                "size": 12 if row == 0 else 8,
                "color": ("--accent", "--face-1", "--muted")[row],
                "symbol": ("diamond", "circle-open", "line-ns-open")[row],
                "line": {"width": 2},
            },
            "hovertemplate": f"{name}: %{{x:.4f}}<extra></extra>",
        }
        for row, (name, values) in enumerate(kinds)
    ]
    return Figure(
        id="alignment",
        title=f"Largest |cos| with the top {len(result.eigenvalues)} Hessian eigenvectors at θ0",
        alt="Dots of the largest absolute cosine with the top eigenvectors: conflict axes, gradients of single "
        "datasets, and random directions. Further right lies more along curvature.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "max |cos|"}, "rangemode": "tozero"},
            "yaxis": row_axis([name for name, _ in kinds], grid=True),
        },
        table=DataTable(
            ["direction", "max |cos|"], [[name, decimal(value, 4)] for name, values in kinds for value in values]
        ),
        height=250,
    )


def calibration_figure(result: CalibrationResult) -> Figure:
    """Mean cosine to the largest calibration set, with its spread over datasets; the published curve beside it."""
    points = result.points
    ticks = sorted({*(point.examples for point in points), 100, 200, 500})
    return Figure(
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
            "legend": LEGEND,
            "showlegend": True,
        },
        narrow={"xaxis.tickvals": ticks[::2], "xaxis.ticktext": ticks[::2]},
        table=DataTable(
            ["examples", "cosine", "spread over datasets", "adjusted Rand index"],
            [
                [str(point.examples), decimal(point.cosine), decimal(point.cosine_sd), signed(point.rand, 2)]
                for point in points
            ],
        ),
        height=340,
    )
