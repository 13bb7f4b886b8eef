"""The gate's figure: the highest point between every two pilots, against what passes."""

from __future__ import annotations

from merit.diagnostics.gate import GateResult
from merit.report.figure import DataTable, Figure
from merit.report.figures.basin import between, whiskers
from merit.report.figures.layout import limit_line, row_axis
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
