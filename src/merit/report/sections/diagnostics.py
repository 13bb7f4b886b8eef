"""The chapter of `merit diagnose`: did the branches stay in one basin, and did the theory hold."""

from __future__ import annotations

from merit.diagnose.check import Part, Reading, all_checks, result_rows
from merit.diagnose.records import CheckResult
from merit.diagnose.verdict import verdict
from merit.report import drawing
from merit.report.evidence import Evidence, Reader
from merit.report.figure import DataTable, Figure, Section

ID, TITLE = "diagnostics", "Whether the basin held"


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
    return [Section(ID, TITLE, "diagnostics", context)]


def _tell(part: Part[CheckResult], result: CheckResult) -> tuple[str, Reading, Figure | None] | None:
    """A part's question, answer and figure."""
    reading = part.reading(result)
    if reading is None:
        return None
    return part.title, reading, part.figure(result, drawing) if part.figure is not None else None
