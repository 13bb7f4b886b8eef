"""Whether the branches stay in one basin: what short pilots said before training, and what the checks found after."""

from __future__ import annotations

from typing import Any

from merit.base.words import NONE, count, decimal, plural, signed
from merit.config.sections import GateConfig
from merit.diagnose.check import Part, Reading, all_checks, result_rows
from merit.diagnose.records import CheckResult, with_interval
from merit.diagnose.verdict import verdict
from merit.gate.step import GateResult
from merit.report import drawing
from merit.report.drawing import (
    DataTable,
    Figure,
    between,
    limit_line,
    row_axis,
    whiskers,
)
from merit.report.evidence import Evidence, Reader
from merit.report.fit import plausible
from merit.report.page import Section

ID, TITLE = "gate", "Whether to go on"


def gate(evidence: Evidence) -> list[Section]:
    """The chapter, where the run has a gate."""
    result = evidence.gate
    if result is None:
        return []
    limit = _max_barrier(evidence.config) * result.base_loss
    context = {
        "ready": result.ready,
        "sentence": _sentence(result),
        "advice": result.advice,
        "losses": pilot_table(result),
        "figure": barriers_figure(result, limit) if result.barriers else None,
        "limit": f"{limit:.3f}",
        "went_on": not result.ready and any(branch.result for branch in evidence.main.branches),
    }
    return [Section(ID, TITLE, "gate", context)]


def _sentence(result: GateResult) -> str:
    return (
        f"Before the branches were trained, {plural(len(result.branch_losses), 'pilot')} trained on "
        f"{result.share:.0%} of their data ({count(sum(result.tokens))} supervised tokens in all) and were merged. "
        f"The highest point between two of them is {with_interval(result.worst.peak)} nats over the straight line "
        f"between their losses ({result.worst.a} to {result.worst.b}); the merge has a held-out loss of "
        f"{decimal(result.merged_loss)}, θ0 of {decimal(result.base_loss)}."
    )


def pilot_table(result: GateResult) -> DataTable:
    """The losses of θ0, of every pilot, and of their merge."""
    pilots = zip(result.branch_losses, result.branch_displacement, result.tokens, strict=True)
    rows = [
        ["θ0", decimal(result.base_loss), NONE, NONE],
        *([f"pilot {k}", decimal(loss), decimal(far, 3), count(n)] for k, (loss, far, n) in enumerate(pilots)),
        [
            "merge of the pilots",
            decimal(result.merged_loss),
            decimal(result.displacement, 3),
            count(sum(result.tokens)),
        ],
    ]
    return DataTable(["model", "held-out loss", "‖θ − θ0‖", "supervised tokens"], rows)


def _max_barrier(config: dict[str, Any]) -> float:
    """As the run's configuration has it."""
    found = config.get("gate")
    value = plausible(found.get("max_barrier")) if isinstance(found, dict) else None
    return GateConfig().max_barrier if value is None else value


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


def diagnostics(evidence: Evidence) -> list[Section]:
    """The chapter, if any check was made."""
    reader = Reader(evidence.run.root)
    results: dict[str, CheckResult] = {}
    parts: list[tuple[str, Reading, Figure | None]] = []
    for name, check in all_checks().items():
        result = reader.record(check.result, evidence.run.diagnostic(name))
        if result is not None:
            results[name] = result
            parts += [told for part in (check, *check.also) if (told := _tell(part, result)) is not None]
    if not results:
        return []
    reached = verdict(results)
    header, *rows = result_rows(results)
    context = {
        "headline": reached.headline,
        "reasons": reached.reasons,
        "parts": parts,
        "table": DataTable(header, rows),
        "problems": reader.problems,
    }
    return [Section("diagnostics", "Whether the basin held", "diagnostics", context)]


def _tell(part: Part[CheckResult], result: CheckResult) -> tuple[str, Reading, Figure | None] | None:
    """A part's question, answer and figure."""
    reading = part.reading(result)
    if reading is None:
        return None
    return part.title, reading, part.figure(result, drawing) if part.figure is not None else None
