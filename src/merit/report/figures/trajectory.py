"""The ways of branches, merge and joint training from θ0."""

from __future__ import annotations

from merit.diagnose.records import Trajectories
from merit.report.figure import DataTable, Figure
from merit.report.figures.basin import colour
from merit.report.figures.style import LEGEND, group_colour
from merit.report.page import plotly_text
from merit.report.words import decimal


def ways_figure(found: Trajectories) -> Figure:
    """Each model's path on the plane of the first two axes of all moments; θ0 is where they begin."""
    traces = []
    for label, points in found.points.items():
        branch = label.startswith("branch")
        own = group_colour(int(label.split()[-1])) if branch else colour(label)
        path = [(0.0, 0.0), *points]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly_text(label),
                "x": [x for x, _ in path],
                "y": [y for _, y in path],
                "line": {"color": own, "width": 1.5 if branch else 2.5, "dash": "dot" if branch else "solid"},
                "marker": {
                    "color": own,
                    "size": [9, *([5] * (len(points) - 1)), 10 if branch else 13],
                    "symbol": "star" if label == "merge" else "circle",
                },
                "text": ["θ0", *(f"{moment:.0%} of the training" for moment in found.moments)],
                "hovertemplate": f"<b>{plotly_text(label)}</b>, %{{text}}<extra></extra>",
            }
        )
    ratio = [decimal(value, 2) for value in found.ratio] if found.ratio else ["–"] * len(found.moments)
    return Figure(
        id="ways",
        title="The way from θ0, while training",
        alt=f"Paths of {len(traces)} models from θ0 on a plane that holds {found.share:.0%} of the variance of all "
        "moments. Branches part; the merge stays between them.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "first axis, in units of ‖θ − θ0‖"}},
            "yaxis": {"title": {"text": "second axis"}, "scaleanchor": "x"},
            "legend": LEGEND,
            "showlegend": True,
        },
        table=DataTable(
            ["share of the training", *(f"‖θ − θ0‖ of {label}" for label in found.norms), "joint ÷ merge"],
            [
                [
                    f"{moment:.0%}",
                    *(decimal(norms[index], 3) for norms in found.norms.values()),
                    ratio[index],
                ]
                for index, moment in enumerate(found.moments)
            ],
        ),
        height=440,
    )
