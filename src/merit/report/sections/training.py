"""Chapter 4: how the branches trained: the raw steps faint, their running mean on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merit.base.words import code, count, decimal, duration, plural, series, shorten
from merit.report.drawing import (
    LEGEND,
    DataTable,
    Figure,
    dash,
    group_colour,
    method_colour,
)
from merit.report.evidence import BranchEvidence, Evidence, MethodEvidence
from merit.report.page import Section, missing, plotly_text

ID, TITLE = "training", "How the branches trained"


def training(evidence: Evidence) -> Section:
    """How the branches trained."""
    methods = evidence.methods
    figures = [
        figure
        for figure in (branch_curves(evidence.main), baseline_curves(methods[1:], evidence.rivals))
        if figure is not None
    ]
    if not figures and not any(method.results for method in methods):
        return missing(ID, TITLE, "No branch has been trained in this run yet.")
    context = {
        "count": len(evidence.main.branches),
        "rounds": _rounds(evidence.config),
        "figures": figures,
        "smoothed": any(is_smoothed(branch) for method in methods for branch in method.branches),
        "unfinished": [words for method in methods if (words := _unfinished(method))],
        "weights": _weights(evidence.main),
    }
    return Section(ID, TITLE, "training", context)


def _rounds(config: Mapping[str, Any]) -> int:
    train = config.get("train")
    rounds = train.get("rounds") if isinstance(train, Mapping) else None
    return rounds if isinstance(rounds, int) else 1


def _unfinished(method: MethodEvidence) -> str | None:
    open_branches = [str(branch.index) for branch in method.branches if branch.result is None]
    if not open_branches:
        return None
    noun = "branch" if len(open_branches) == 1 else "branches"
    return f"{code(method.name)}: {noun} {series(open_branches, limit=12)} not finished."


def _weights(method: MethodEvidence) -> DataTable | None:
    results = [branch.result for branch in method.branches]
    if not method.weights or len(results) < 2:
        return None
    rows = [
        [f"branch {k}", count(result.supervised_tokens), plural(result.steps, "step"), f"{weight:.4f}"]
        for k, (result, weight) in enumerate(zip(results, method.weights, strict=True))
        if result is not None
    ]
    return DataTable(["branch", "supervised tokens trained on", "optimizer steps", "weight in the merge"], rows)


_POINTS = 400  # drawn a curve


def branch_curves(method: MethodEvidence) -> Figure | None:
    """The main method's branches."""
    traces = []
    for branch in method.branches:
        traces += _curve(f"branch {branch.index}", branch, group_colour(branch.index), "solid")
    return _figure("curves", "Training loss of each branch", "branches", traces, [method])


def baseline_curves(methods: Sequence[MethodEvidence], rivals: Sequence[str]) -> Figure | None:
    """The baselines' branches: a colour a method, a dash a branch."""
    traces = []
    for method in methods:
        for branch in method.branches:
            label = method.name if len(method.branches) == 1 else f"{method.name} {branch.index}"
            traces += _curve(label, branch, method_colour(method.name, rivals), dash(branch.index))
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


def smooth(values: Sequence[float], window: int) -> list[float]:
    """A running mean over up to `window` values around each. It narrows at the start, where losses fall steeply."""
    half = max(0, window // 2)
    result = []
    for i in range(len(values)):
        part = values[i - min(half, i) : i + min(half, i) + 1]
        result.append(sum(part) / len(part))
    return result
