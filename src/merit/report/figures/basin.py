"""The basin: losses along segments, on a plane, and under noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merit.diagnose.records import Estimate, LandscapeResult, LmcResult, NoiseLevel, PerturbationResult, Segment
from merit.report.figure import DataTable, Figure
from merit.report.figures.style import LEGEND, dash, method_colour, method_symbol, place_labels
from merit.report.page import plotly_text
from merit.report.words import decimal, signed

_SHOWN = 24  # segments drawn: those with the highest peaks
_SCALE = [[0, "--agree-2"], [0.35, "--agree-1"], [0.6, "--neutral"], [0.8, "--fight-1"], [1, "--fight-2"]]
_KINDS = {"between branches": "--group-1", "branch to merge": "--accent", "from θ0": "--muted"}


def connectivity_figure(result: LmcResult) -> Figure:
    """Loss over the chord on every segment: above zero is a hill between two models."""
    order = sorted(result.held_out, key=lambda item: -item.peak.value)
    seen: set[str] = set()
    traces = []
    for index, segment in enumerate(order[:_SHOWN]):
        kind = _kind(segment)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": kind,
                "legendgroup": kind,
                "showlegend": kind not in seen,
                "x": segment.t,
                "y": [round(loss - chord, 5) for loss, chord in zip(segment.loss, segment.chord, strict=True)],
                "line": {"color": _KINDS[kind], "width": 1.5, "dash": dash(index % 4)},
                "marker": {"color": _KINDS[kind], "size": 5},
                "hovertemplate": f"<b>{segment.a} – {segment.b}</b><br>t = %{{x:.2f}}: %{{y:+.4f}} nats<extra></extra>",
            }
        )
        seen.add(kind)
    return Figure(
        id="connectivity",
        title="Loss along the straight line between two models, minus the chord",
        alt=f"Lines of held-out loss over the chord along {len(traces)} segments. A hill above zero is a barrier; "
        "the table has each segment's peak and its interval.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "t: from one model to the other"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "loss over the chord, nats"}, "zeroline": True},
            "legend": LEGEND,
            "showlegend": True,
        },
        table=DataTable(
            ["from", "to", "peak over the chord", "95% interval", "at t"],
            [[item.a, item.b, signed(item.peak.value), between(item.peak), f"{item.at:.2f}"] for item in order],
        ),
        narrow={"yaxis.nticks": 5},  # labels of one width: plotly's margins would not settle otherwise
    )


def landscape_figure(result: LandscapeResult) -> Figure:
    """Contours of the held-out loss with every model in its place."""
    places = list(result.models)
    labels = ["θ0" if place == "base" else place for place in places]
    points = [result.models[place] for place in places]
    spots = place_labels(points, labels, size=(420, 300))
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
        "text": [plotly_text(label) for label in labels],
        "textposition": spots,
        "marker": {
            "size": 11,
            "color": "--ink",
            "symbol": [_symbol(place) for place in places],
            "line": {"width": 2, "color": "--ink"},
        },
        "hovertemplate": "<b>%{text}</b><extra></extra>",
    }
    return Figure(
        id="landscape",
        title="Held-out loss on the plane through θ0, branches and joint training",
        alt=f"Contour map of the loss on a coarse grid of {len(result.x)} by {len(result.y)} points, with "
        f"{len(labels)} models marked. One valley that holds them all is one basin.",
        traces=[contour, marks],
        layout={
            "xaxis": {"title": {"text": "first axis, in units of ‖θ − θ0‖"}, "showgrid": False},
            "yaxis": {"title": {"text": "second axis"}, "showgrid": False},
        },
        table=DataTable(
            ["model", "x", "y", "distance from the plane"],
            [
                [label, decimal(x, 2), decimal(y, 2), decimal(result.off_plane[label], 2)]
                for label, (x, y) in result.models.items()
            ],
        ),
        height=460,
    )


def noise_figure(result: PerturbationResult) -> Figure:
    """Rise of the loss with noise in the weights, merge and joint training."""
    others = [label for label in result.levels if label != "merge"]
    traces = [_noise(label, levels, others) for label, levels in result.levels.items()]
    return Figure(
        id="perturbation",
        title="Held-out loss under noise in the weights",
        alt=f"Rise of the loss of {len(traces)} models against the relative size of Gaussian noise in their weights, "
        "with 95% intervals. The flatter line has the flatter basin.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "σ: norm of the noise, relative to each row of weights"}},
            "yaxis": {"title": {"text": "rise of the loss, nats a token"}, "zeroline": True},
            "legend": LEGEND,
            "showlegend": True,
        },
        table=DataTable(
            ["model", "σ", "loss", "rise", "95% interval", "spread between seeds"],
            [
                [
                    label,
                    f"{level.sigma:g}",
                    decimal(level.loss.value),
                    signed(level.rise.value),
                    between(level.rise),
                    decimal(level.seed_spread),
                ]
                for label, levels in result.levels.items()
                for level in levels
            ],
        ),
        height=340,
    )


def between(item: Estimate) -> str:
    """ "−0.012 to +0.034"."""
    return f"{signed(item.low)} to {signed(item.high)}"


def whiskers(items: Sequence[Estimate], colour: str) -> dict[str, Any]:
    """The intervals of points as plotly's error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [item.high - item.value for item in items],
        "arrayminus": [item.value - item.low for item in items],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def colour(label: str, others: Sequence[str] = ("joint",)) -> str:
    """The colour of a model of a diagnosis. Joint training's is no group's: branches stand beside it."""
    if label == "joint":
        return "--ink"
    return method_colour({"merge": "merit"}.get(label, label), others)


def _noise(label: str, levels: Sequence[NoiseLevel], others: Sequence[str]) -> Mapping[str, Any]:
    values = [level.rise for level in levels]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plotly_text(label),
        "x": [level.sigma for level in levels],
        "y": [item.value for item in values],
        "error_y": whiskers(values, colour(label, others)),
        "line": {"color": colour(label, others), "width": 2.5, "dash": dash(len(others) and label in others)},
        "marker": {"size": 8, "color": colour(label, others), "symbol": _symbol(label)},
        "hovertemplate": f"<b>{plotly_text(label)}</b><br>σ = %{{x}}: %{{y:+.4f}}<extra></extra>",
    }


def _kind(segment: Segment) -> str:
    if segment.a == "base":
        return "from θ0"
    return "branch to merge" if segment.b == "merge" else "between branches"


def _symbol(label: str) -> str:
    if label.startswith("branch"):
        return "circle-open"
    return method_symbol({"merge": "merit"}.get(label, label), ["joint"])
