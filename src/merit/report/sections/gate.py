"""The chapter of the go/no-go gate: what short pilots of the branches said before the run was paid for."""

from __future__ import annotations

from typing import Any

from merit.base.words import NONE, count, decimal, plural
from merit.config.sections import GateConfig
from merit.diagnose.gate import GateResult
from merit.diagnose.records import with_interval
from merit.report.evidence import Evidence
from merit.report.figure import DataTable, Section
from merit.report.figures.training import barriers_figure

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
        "losses": _losses(result),
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


def _losses(result: GateResult) -> DataTable:
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
    value = found.get("max_barrier") if isinstance(found, dict) else None
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and value is not None else GateConfig().max_barrier
