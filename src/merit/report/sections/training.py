"""Chapter 4: how the branches trained."""

from __future__ import annotations

from merit.report.evidence import Evidence, MethodEvidence
from merit.report.figure import DataTable, Section, missing
from merit.report.figures.training import baseline_curves, branch_curves, is_smoothed
from merit.report.words import code, count, plural, series

ID, TITLE = "training", "How the branches trained"


def training(evidence: Evidence) -> Section:
    """How the branches trained."""
    methods = evidence.methods
    figures = [figure for figure in (branch_curves(evidence.main), baseline_curves(methods[1:])) if figure is not None]
    if not figures and not any(branch.result for method in methods for branch in method.branches):
        return missing(ID, TITLE, "No branch has been trained in this run yet.")
    weights = (evidence.main.merge or {}).get("weights")
    context = {
        "count": len(evidence.main.branches),
        "figures": figures,
        "smoothed": any(is_smoothed(branch) for method in methods for branch in method.branches),
        "unfinished": [words for method in methods if (words := _unfinished(method))],
        "weights": _weights(evidence.main, weights) if isinstance(weights, list) else None,
    }
    return Section(ID, TITLE, "training", context)


def _unfinished(method: MethodEvidence) -> str | None:
    open_branches = [str(branch.index) for branch in method.branches if branch.result is None]
    if not open_branches:
        return None
    noun = "branch" if len(open_branches) == 1 else "branches"
    return f"{code(method.name)}: {noun} {series(open_branches, limit=12)} not finished."


def _weights(method: MethodEvidence, weights: list[float]) -> DataTable | None:
    results = [branch.result for branch in method.branches]
    if len(weights) != len(results) or len(results) < 2:
        return None
    rows = [
        [f"branch {k}", count(result.supervised_tokens), plural(result.steps, "step"), f"{float(weight):.4f}"]
        for k, (result, weight) in enumerate(zip(results, weights, strict=True))
        if result is not None and isinstance(weight, int | float)
    ]
    return DataTable(["branch", "supervised tokens trained on", "optimizer steps", "weight in the merge"], rows)
