"""Linear mode connectivity: is there a hill on the straight line between two models?"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from merit.base.words import NONE, plural, signed
from merit.diagnose.check import Check, Reading, Row
from merit.diagnose.records import CheckResult, Segment, with_interval

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench

NEGLIGIBLE = 0.02  # of the loss at the ends: a lower hill is no barrier, however certain
_SHOWN = 24  # segments drawn: those with the highest peaks
_KINDS = {"between branches": "--group-1", "branch to merge": "--accent", "from θ0": "--muted"}


class LmcResult(CheckResult):
    """`lmc.json`: linear mode connectivity on held-out and on training examples."""

    held_out: list[Segment]
    train: list[Segment]
    examples: int  # held-out examples
    datasets: int


def barriers(segments: Sequence[Segment]) -> list[Segment]:
    """Segments with a hill that is neither noise nor negligible."""

    def is_one(segment: Segment) -> bool:
        peak = segment.peak
        return peak.low > 0 and peak.value > NEGLIGIBLE * (segment.loss[0] + segment.loss[-1]) / 2

    return [segment for segment in segments if is_one(segment)]


def _run(bench: Bench) -> LmcResult:
    from merit.diagnose.connectivity import connectivity, segment_pairs

    return connectivity(
        bench.live,
        segment_pairs(bench.models),
        {"held_out": bench.held_out, "train": bench.train},
        points=bench.config.points,
        journal=bench.journal,
        progress=bench.progress,
    )


def _rows(result: LmcResult) -> list[Row]:
    rows = []
    for face, segments in (("held-out", result.held_out), ("training", result.train)):
        if not segments:
            continue
        real = len(barriers(segments))
        highest = max(segments, key=lambda segment: segment.peak.value)
        published = "0 of 10" if face == "held-out" else NONE
        rows.append([f"barriers, {face} loss", f"{real} of {len(segments)}", published])
        where = f"{highest.a} – {highest.b}, t = {highest.at:.2f}"
        rows.append([f"highest over the chord ({where})", with_interval(highest.peak), "0.0"])
    return rows


def _reading(result: LmcResult) -> Reading:
    real = barriers(result.held_out)
    highest = max(result.held_out, key=lambda segment: segment.peak.value)
    where = f"between {highest.a} and {highest.b} at t = {highest.at:.2f}: {with_interval(highest.peak)} nats"
    return Reading(
        f"{len(real)} of {plural(len(result.held_out), 'segment')} cross a barrier, a hill that "
        f"is neither noise nor lower than {NEGLIGIBLE:.0%} of the loss. The highest point over a chord is {where}. "
        "Where branches know nothing of each other's data, their ends are high and the middle may sag far below the "
        "chord: that is the merging gain, and no proof of a flat basin.",
        "Each line walks straight from one model's weights to another's; where it stays at or below zero the way is "
        "flat and averaging is safe, and where it bulges above zero there is a barrier that a merge would land on.",
        "10 of 10 barriers are 0.0",
    )


def _figure(result: LmcResult, draw: ModuleType) -> Any:
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
                "line": {"color": _KINDS[kind], "width": 1.5, "dash": draw.dash(index % 4)},
                "marker": {"color": _KINDS[kind], "size": 5},
                "hovertemplate": f"<b>{segment.a} – {segment.b}</b><br>t = %{{x:.2f}}: %{{y:+.4f}} nats<extra></extra>",
            }
        )
        seen.add(kind)
    return draw.Figure(
        id="connectivity",
        title="Loss along the straight line between two models, minus the chord",
        alt=f"Lines of held-out loss over the chord along {len(traces)} segments. A hill above zero is a barrier; "
        "the table has each segment's peak and its interval.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "t: from one model to the other"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "loss over the chord, nats"}, "zeroline": True},
            "legend": draw.LEGEND,
            "showlegend": True,
        },
        table=draw.DataTable(
            ["from", "to", "peak over the chord", "95% interval", "at t"],
            [[item.a, item.b, signed(item.peak.value), draw.between(item.peak), f"{item.at:.2f}"] for item in order],
        ),
        narrow={"yaxis.nticks": 5},  # labels of one width: plotly's margins would not settle otherwise
    )


def _kind(segment: Segment) -> str:
    if segment.a == "base":
        return "from θ0"
    return "branch to merge" if segment.b == "merge" else "between branches"


CHECK = Check(
    title="Is there a hill between the models?",
    result=LmcResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    uses=("examples", "points"),
    order=1,
)
