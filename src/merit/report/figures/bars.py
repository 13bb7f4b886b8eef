"""Horizontal bars: reliability a dataset, tokens a group, seconds a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merit.conflict.records import ConflictResult
from merit.report.figure import DataTable, Figure
from merit.report.figures.style import group_colour, limit_line, row_axis
from merit.report.grouping import Grouping, group_label
from merit.report.page import plotly_text
from merit.report.words import compact, count, decimal, duration, short_labels, shorten
from merit.split.partition import Partition

_READABLE = 30  # names on an axis
UNRELIABLE = 0.5  # as conflict.measure warns: below it, most of a mean gradient is noise


def reliability_figure(conflict: ConflictResult, grouping: Grouping) -> Figure:
    """Split-half reliability of every dataset's mean gradient, lowest on top."""
    position = {name: i for i, name in enumerate(conflict.names)}
    known = [name for name in grouping.names if conflict.reliability[position[name]] is not None]
    order = sorted(known, key=lambda name: conflict.reliability[position[name]] or 0.0)
    values = [conflict.reliability[position[name]] or 0.0 for name in order]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": list(range(len(order))),
        "marker": {"color": ["--fight-2" if value < UNRELIABLE else "--accent" for value in values]},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    return Figure(
        id="reliability",
        title="How far each gradient can be trusted",
        alt=f"Bar chart of the split-half reliability of {len(order)} gradients, from "
        f"{decimal(min(values), 2)} to {decimal(max(values), 2)}; below {UNRELIABLE} most of a gradient is noise.",
        traces=[trace],
        layout={
            "xaxis": {"range": [0, 1], "title": {"text": "split-half reliability"}},
            "yaxis": {**row_axis(short_labels(order, 26)), "showticklabels": len(order) <= _READABLE},
            "shapes": [limit_line(UNRELIABLE, "--muted")],
            "bargap": 0.3,
        },
        table=DataTable(
            ["dataset", "reliability", "calibration examples", "supervised tokens", "gradient norm", "loss at θ0"],
            [
                [
                    name,
                    decimal(conflict.reliability[i]),
                    count(conflict.examples[i]),
                    count(conflict.tokens[i]),
                    f"{conflict.norms[i]:.4g}",
                    decimal(conflict.losses[i]),
                ]
                for name in grouping.names
                for i in [position[name]]
            ],
        ),
        height=max(240, min(560, 90 + 22 * len(order))),
    )


def tokens_figure(partition: Partition, tokens: Mapping[str, int]) -> Figure:
    """Planned supervised tokens a group, a segment a dataset."""
    traces = []
    labels = [group_label(k) for k in range(len(partition.groups))]
    for k, group in enumerate(partition.groups):
        for name in sorted(group.datasets, key=lambda name: -tokens.get(name, 0)):
            held = tokens.get(name, 0)
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "x": [held],
                    "y": [k],
                    "text": [plotly_text(shorten(name, 18))] if held >= 0.12 * group.tokens else [""],
                    "textposition": "inside",
                    "insidetextanchor": "middle",
                    "textangle": 0,
                    "constraintext": "inside",
                    "textfont": {"size": 11, "color": "--on-group"},
                    "marker": {"color": group_colour(k), "line": {"color": "--surface", "width": 2}},
                    "customdata": [[plotly_text(shorten(name, 60)), count(held), _share(held, group.tokens)]],
                    "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]} supervised tokens, "
                    "%{customdata[2]} of its group<extra></extra>",
                }
            )
    return Figure(
        id="tokens",
        title="Supervised tokens of each group",
        alt="Stacked bars: "
        + "; ".join(
            f"{label} has {compact(group.tokens)} tokens in {len(group.datasets)} datasets"
            for label, group in zip(labels, partition.groups, strict=True)
        )
        + ".",
        traces=traces,
        layout={
            "barmode": "stack",
            "uniformtext": {"minsize": 10, "mode": "hide"},
            "showlegend": False,
            "xaxis": {"title": {"text": "supervised tokens an epoch"}},
            "yaxis": row_axis(labels),
            "bargap": 0.3,
        },
        table=DataTable(
            ["group", "dataset", "supervised tokens", "share of the group"],
            [
                [labels[k], name, count(tokens.get(name, 0)), _share(tokens.get(name, 0), group.tokens)]
                for k, group in enumerate(partition.groups)
                for name in group.datasets
            ],
        ),
        height=110 + 44 * len(labels),
    )


def stage_figure(stages: Sequence[tuple[str, float]]) -> Figure:
    """Seconds a stage took, over all sittings."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [seconds for _, seconds in stages],
        "y": list(range(len(stages))),
        "text": [duration(seconds) for _, seconds in stages],
        "textposition": "auto",
        "marker": {"color": "--accent"},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    total = sum(seconds for _, seconds in stages)
    longest = max(stages, key=lambda stage: stage[1])
    return Figure(
        id="stages",
        title="Time a stage",
        alt=f"Bar chart of the time of {len(stages)} stages, {duration(total)} in all; "
        f"the longest is {longest[0]} with {duration(longest[1])}.",
        traces=[trace],
        layout={
            "xaxis": {"title": {"text": "seconds"}},
            "yaxis": row_axis([name for name, _ in stages]),
            "bargap": 0.35,
        },
        table=DataTable(["stage", "time", "share"], [[n, duration(s), _share(s, total)] for n, s in stages]),
        height=100 + 30 * len(stages),
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"
