"""The gate's figure: the highest point between every two pilots, against what passes."""

from __future__ import annotations

from merit.diagnostics.gate import GateResult
from merit.report.figure import DataTable, Figure
from merit.report.figures.basin import between
from merit.report.safe import plotly_text
from merit.report.words import signed

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
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [item.peak.high - item.peak.value for item in shown],
            "arrayminus": [item.peak.value - item.peak.low for item in shown],
            "color": "--muted",
            "thickness": 1.5,
            "width": 4,
        },
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
            "yaxis": {
                "tickmode": "array",
                "tickvals": list(range(len(shown))),
                "ticktext": [plotly_text(_pair(item.a, item.b)) for item in shown],
                "range": [len(shown) - 0.5, -0.5],
                "showgrid": False,
            },
            "shapes": [
                {
                    "type": "line",
                    "x0": limit,
                    "x1": limit,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": "--fight-2", "width": 1.5, "dash": "dash"},
                }
            ],
        },
        table=DataTable(
            ["between", "peak over the chord", "95% interval", "at t"],
            [[_pair(item.a, item.b), signed(item.peak.value), between(item.peak), f"{item.at:.2f}"] for item in order],
        ),
        height=130 + 32 * len(shown),
    )


def _pair(a: str, b: str) -> str:
    return f"{a} – {b}"
