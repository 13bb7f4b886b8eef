"""Linear mode connectivity: is there a hill on the straight line between two models?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.base.progress import SILENT, Counter, Progress
from merit.base.words import NONE, plural, signed
from merit.diagnose.check import Check, Journal, Reading, Row
from merit.diagnose.losses import LossSet, Matrix, Resampler, interval, losses_at
from merit.diagnose.models import BASE, MERGE, Models
from merit.diagnose.records import CheckResult, Segment, with_interval

if TYPE_CHECKING:
    from merit.diagnose.bench import Bench
    from merit.diagnose.live import LiveModel

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
    return [
        segment
        for segment in segments
        if segment.peak.low > 0 and segment.peak.value > NEGLIGIBLE * (segment.loss[0] + segment.loss[-1]) / 2
    ]


def _run(bench: Bench) -> LmcResult:
    return connectivity(
        bench.live,
        segment_pairs(bench.models),
        bench.sets,
        points=bench.config.points,
        journal=bench.journal,
        progress=bench.progress,
    )


def segment_pairs(models: Models) -> list[tuple[str, str]]:
    """All pairs of branches, every branch with the merge, every branch with θ0, θ0 with the merge."""
    branches = models.branch_labels
    return [
        *itertools.combinations(branches, 2),
        *((branch, MERGE) for branch in branches),
        *((BASE, branch) for branch in branches),
        (BASE, MERGE),
    ]


def connectivity(
    live: LiveModel,
    pairs: Sequence[tuple[str, str]],
    sets: Mapping[str, LossSet],
    *,
    points: int,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> LmcResult:
    """Losses along each segment, at `points` equally spaced t, ends included.

    Args:
        sets: `held_out`, and `train` if it is wanted.

    Raises:
        InputError: checkpoints of different layouts.
        StageError: a loss is not finite.
    """
    journal = journal or Journal()
    inner = np.linspace(0, 1, points)[1:-1].tolist()
    ends = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    passes = len(ends) + len(pairs) * len(inner)
    total = passes * sum(len(item.rows) for item in sets.values())
    with progress.bar("connectivity", total=total, unit="example") as bar:
        counter = Counter(bar)

        def along(a: str, b: str) -> list[dict[str, list[float]]]:
            named = {t: f"the point t = {t:.2f} from {a} to {b}" for t in inner}
            return [losses_at(live, {a: 1 - t, b: t}, what, sets, counter) for t, what in named.items()]

        at_end = {
            label: journal.get(label, partial(losses_at, live, {label: 1.0}, label, sets, counter)) for label in ends
        }
        found: dict[str, list[Segment]] = {name: [] for name in sets}
        for a, b in pairs:
            counter.note(f"{a} – {b}")
            line = [at_end[a], *journal.get(f"{a} – {b}", partial(along, a, b)), at_end[b]]
            for name, item in sets.items():
                losses = np.array([point[name] for point in line])
                found[name].append(describe_segment(a, b, losses, item.resampler))
    held_out = sets["held_out"]
    return LmcResult(
        held_out=found["held_out"],
        train=found.get("train", []),
        examples=len(held_out.rows),
        datasets=len(set(held_out.owner)),
    )


def describe_segment(a: str, b: str, losses: Matrix, resampler: Resampler) -> Segment:
    """Peak over the chord and its interval, from (points, N) losses of the same examples at each t.

    Every resample has its own ends and its own largest point, so the interval covers the choice of t as well. A maximum
    over noise is biased upward: an interval that holds 0 is no barrier.
    """
    t = np.linspace(0, 1, len(losses))
    mean = resampler.mean(losses)
    chord = (1 - t) * mean[0] + t * mean[-1]
    drawn = resampler.drawn(losses)
    over = drawn - np.outer(drawn[:, 0], 1 - t) - np.outer(drawn[:, -1], t)
    where = 1 + int(np.argmax((mean - chord)[1:-1]))
    return Segment(
        a=a,
        b=b,
        t=t.tolist(),
        loss=mean.tolist(),
        chord=chord.tolist(),
        peak=interval(float((mean - chord)[where]), over[:, 1:-1].max(1)),
        at=float(t[where]),
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
        "10 of 10 barriers are 0.0, at 21 points a path; the merge's loss of 1.973 lies below those of its branches "
        "(1.99–2.47)",
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


def _tracked(result: LmcResult) -> dict[str, float]:
    faces = {"held_out": result.held_out, "train": result.train}
    highest = {f"barrier_{face}": max((item.barrier for item in found), default=0.0) for face, found in faces.items()}
    return highest | {"barriers_held_out": len(barriers(result.held_out))}


CHECK = Check(
    title="Is there a hill between the models?",
    result=LmcResult,
    run=_run,
    rows=_rows,
    reading=_reading,
    figure=_figure,
    tracked=_tracked,
    uses=("examples", "points"),
    order=1,
)
