"""Stage `report`: one HTML file and one model card from the run's JSON."""

from __future__ import annotations

from typing import Any

from merit.context import RunContext, Step
from merit.report.build import build_report
from merit.report.card import write_run_card

NAME = "report"


def run(context: RunContext) -> dict[str, Any]:
    """Writes report.html and README.md; costs a second, so it is made at every call."""
    build_report(context.run.root)
    write_run_card(context.run.root)
    return {}


STEP = Step(NAME, run)
