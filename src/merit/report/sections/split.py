"""Chapter 3: which datasets train together, and why."""

from __future__ import annotations

from collections.abc import Mapping

from merit.base.words import code, compact, count, plural, series, shorten, signed
from merit.report.drawing import DataTable, Figure, group_colour, row_axis, share
from merit.report.evidence import Evidence, group_label
from merit.report.page import Section, missing, plotly_text
from merit.split.evidence import AxesEvidence
from merit.split.partition import Cut, Partition
from merit.split.splitter import known_splitter

ID, TITLE = "split", "How it was split"


def split(evidence: Evidence) -> Section:
    """How it was split."""
    partition = evidence.main.partition
    if partition is None:
        return missing(ID, TITLE, "The mixture has not been split in this run yet.")
    mixture = evidence.mixture
    tokens = mixture.planned_tokens if mixture else {}
    context = {
        "how": _how(partition),
        "balance": _balance(partition),
        "evidence": _evidence(evidence.axes_evidence),
        "figure": tokens_figure(partition, tokens) if tokens else None,
        "groups": [
            (group_label(k), k, f"{compact(group.tokens)} tokens", group.datasets)
            for k, group in enumerate(partition.groups)
        ],
        "advice": evidence.axes_evidence.words(len(partition.groups)) if evidence.axes_evidence else None,
        "cuts": [_cut_words(cut, partition, mixture.sizes(cut.balance) if mixture else {}) for cut in partition.cuts],
        "fragile": _fragile(partition),
        "baselines": [
            f"{code(method.name)} ({plural(len(method.partition.groups), 'group')}) was split {_how(method.partition)}."
            for method in evidence.methods[1:]
            if method.partition
        ],
    }
    return Section(ID, TITLE, "split", context)


def _how(partition: Partition) -> str:
    return known_splitter(partition.splitter).how


def _balance(partition: Partition) -> str | None:
    sizes = [group.tokens for group in partition.groups]
    if len(sizes) < 2 or not sum(sizes):
        return None
    large, small = max(sizes) / sum(sizes), min(sizes) / sum(sizes)
    return (
        f"The largest group holds {large:.1%} of the tokens, the smallest {small:.1%}; equal shares would be "
        f"{1 / len(sizes):.1%}. With one machine a group, the largest sets the time."
    )


def _evidence(found: AxesEvidence | None) -> DataTable | None:
    """What each further axis captures, judged on examples that it was not found on."""
    if found is None:
        return None
    header = ["axes", "groups", "conflict between the groups", "with a random last cut", "p"]
    rows = [[str(a.axes), str(a.groups), f"{a.share:.1%}", f"{a.random_share:.1%}", f"{a.p:.3f}"] for a in found.axes]
    return DataTable(header, rows)


def _cut_words(cut: Cut, partition: Partition, sizes: Mapping[str, int]) -> str:
    low, high = _sides(cut, partition, sizes)
    unit = "examples" if cut.balance == "samples" else "tokens"
    note = f" Note: {cut.note}." if cut.note else ""
    return (
        f"On PC{cut.axis + 1}, {plural(len(cut.group), 'dataset')} were cut at {signed(cut.threshold)}: "
        f"{series([code(name) for name in low], limit=6)} below ({compact(cut.low)} {unit}), "
        f"{series([code(name) for name in reversed(high)], limit=6)} above ({compact(cut.high)} {unit}).{note}"
    )


def _fragile(partition: Partition) -> str | None:
    names = partition.fragile
    if not names:
        return None
    return (
        "Within two standard errors of a cut, where noise in its gradient could have put a dataset on the other side: "
        f"{series([code(name) for name in names], limit=12)} ({len(names)} of {len(partition.group_of)})."
    )


def _sides(cut: Cut, partition: Partition, sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Low and high side. Tokens tell where the cut fell even when datasets tie on the threshold; scores otherwise."""
    reached = 0
    for position, name in enumerate(cut.group[:-1], start=1):
        reached += sizes.get(name, 0)
        if reached == cut.low and sizes:
            return cut.group[:position], cut.group[position:]
    scores = {name: row[cut.axis] for name, row in partition.scores.items() if cut.axis < len(row)}
    low = [name for name in cut.group if scores.get(name, 0.0) <= cut.threshold]
    return low, [name for name in cut.group if name not in low]


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
                    "customdata": [[plotly_text(shorten(name, 60)), count(held), share(held, group.tokens)]],
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
                [labels[k], name, count(tokens.get(name, 0)), share(tokens.get(name, 0), group.tokens)]
                for k, group in enumerate(partition.groups)
                for name in group.datasets
            ],
        ),
        height=110 + 44 * len(labels),
    )
