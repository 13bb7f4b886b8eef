"""Loss curves of the branches: the raw steps faint, their running mean on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merit.base.words import count, decimal, duration, shorten, signed
from merit.gate.step import GateResult
from merit.report.drawing import between, whiskers
from merit.report.evidence import BranchEvidence, MethodEvidence
from merit.report.figure import DataTable, Figure
from merit.report.figures.style import LEGEND, dash, group_colour, limit_line, method_colour, row_axis
from merit.report.now import smooth
from merit.report.page import plotly_text

_POINTS = 400  # drawn a curve


def branch_curves(method: MethodEvidence) -> Figure | None:
    """The main method's branches."""
    traces = []
    for branch in method.branches:
        traces += _curve(f"branch {branch.index}", branch, group_colour(branch.index), "solid")
    return _figure("curves", "Training loss of each branch", "branches", traces, [method])


def baseline_curves(methods: Sequence[MethodEvidence]) -> Figure | None:
    """The baselines' branches: a colour a method, a dash a branch."""
    names = [method.name for method in methods]
    traces = []
    for method in methods:
        for branch in method.branches:
            label = method.name if len(method.branches) == 1 else f"{method.name} {branch.index}"
            traces += _curve(label, branch, method_colour(method.name, names), dash(branch.index))
    return _figure("baseline-curves", "Training loss of the baselines", "baseline branches", traces, methods)


def is_smoothed(branch: BranchEvidence) -> bool:
    """Whether the branch is long enough for its running mean to be another line than its steps."""
    return _window(len(branch.log)) > 1


def _window(steps: int) -> int:
    return max(1, steps // 12)


def _curve(label: str, branch: BranchEvidence, colour: str, style: str) -> list[dict[str, Any]]:
    lines = branch.log
    if not lines:
        return []
    label = plotly_text(shorten(label, 40))
    losses = [line.loss for line in lines]
    means = smooth(losses, _window(len(losses)))
    keep = sorted({round(i * (len(lines) - 1) / (_POINTS - 1)) for i in range(_POINTS)}) if len(lines) > 1 else [0]
    steps = [lines[i].step for i in keep]
    common = {"type": "scatter", "x": steps, "legendgroup": label, "name": label}
    seen = [count(lines[i].supervised_tokens or 0) for i in keep]
    return [
        {
            **common,
            "y": [round(losses[i], 4) for i in keep],
            "mode": "lines",
            "line": {"color": colour, "width": 1},
            "opacity": 0.28,
            "showlegend": False,
            "hoverinfo": "skip",
        },
        {
            **common,
            "y": [round(means[i], 4) for i in keep],
            "mode": "lines+markers" if len(keep) < 3 else "lines",
            "line": {"color": colour, "width": 2.5, "dash": style},
            "customdata": seen,
            "hovertemplate": f"<b>{label}</b><br>step %{{x}}: loss %{{y:.3f}} (running mean)"
            "<br>%{customdata} supervised tokens seen<extra></extra>",
        },
    ]


def _figure(
    id: str, title: str, what: str, traces: list[dict[str, Any]], methods: Sequence[MethodEvidence]
) -> Figure | None:
    if not traces:
        return None
    branches = [(method.name, branch) for method in methods for branch in method.branches]
    return Figure(
        id=id,
        title=title,
        alt=f"Line chart of the training loss of {len(traces) // 2} {what} against the optimizer step; "
        "the table has the first and last values.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "optimizer step"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "loss, nats a supervised token"}},
            "legend": LEGEND,
            "showlegend": True,
        },
        table=DataTable(
            [
                "method",
                "branch",
                "steps",
                "first loss",
                "last loss",
                "mean of the last tenth",
                "supervised tokens",
                "time",
            ],
            [_row(name, branch) for name, branch in branches],
        ),
        height=380,
    )


def _row(name: str, branch: BranchEvidence) -> list[str]:
    losses = [line.loss for line in branch.log]
    tail = losses[-max(1, len(losses) // 10) :]
    last = branch.log[-1] if branch.log else None
    tokens = branch.result.supervised_tokens if branch.result else last.supervised_tokens if last else None
    seconds = branch.result.seconds if branch.result else last.seconds if last else None
    return [
        name,
        str(branch.index),
        count(branch.result.steps if branch.result else last.step if last else 0),
        decimal(losses[0] if losses else None),
        decimal(losses[-1] if losses else None),
        decimal(sum(tail) / len(tail) if tail else None),
        "–" if tokens is None else count(tokens),
        "–" if seconds is None else duration(seconds),
    ]


_SHOWN = 28  # pairs of eight pilots


def barriers_figure(result: GateResult, limit: float) -> Figure:
    """Peaks over the chord with 95% intervals; an interval that lies right of the dashed line does not pass."""
    order = sorted(result.barriers, key=lambda item: -item.peak.value)
    shown = order[:_SHOWN]
    high = [item.peak.low > limit for item in shown]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [item.peak.value for item in shown],
        "y": list(range(len(shown))),
        "error_x": whiskers([item.peak for item in shown], "--muted"),
        "marker": {
            "size": 10,
            "color": ["--fight-2" if bad else "--accent" for bad in high],
            "symbol": ["diamond" if bad else "circle" for bad in high],
        },
        "hovertemplate": "%{y}: %{x:+.4f} nats<extra></extra>",
    }
    return Figure(
        id="gate",
        title="Highest point between two pilots, over the chord",
        alt=f"Dots with 95% intervals for {len(shown)} pairs of pilots; {sum(high)} lie wholly above the limit of "
        f"{limit:.3f} nats, drawn as a dashed line.",
        traces=[trace],
        layout={
            "xaxis": {"title": {"text": "peak of L − chord, nats a token  (← flatter)"}, "zeroline": True},
            "yaxis": row_axis([_pair(item.a, item.b) for item in shown]),
            "shapes": [limit_line(limit, "--fight-2")],
        },
        table=DataTable(
            ["between", "peak over the chord", "95% interval", "at t"],
            [[_pair(item.a, item.b), signed(item.peak.value), between(item.peak), f"{item.at:.2f}"] for item in order],
        ),
        height=130 + 32 * len(shown),
    )


def _pair(a: str, b: str) -> str:
    return f"{a} – {b}"
