"""What the run cost beside joint training: time, tokens, and bytes between machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from merit.report.evidence import Evidence, MethodEvidence
from merit.report.figure import DataTable
from merit.report.words import NONE, count, data_size, duration
from merit.train.spec import BranchResult

_BYTES = 4  # of one fp32 gradient


@dataclass(frozen=True)
class _Line:
    what: str
    merit: str
    joint: str
    ratio: float | None = None


def against_joint(evidence: Evidence, seconds: Mapping[str, float]) -> DataTable | None:
    """None where the run has no finished joint training, or the main method no finished branches.

    Args:
        evidence: the run.
        seconds: time of each stage, over all sittings.
    """
    joint = evidence.joint
    if joint is None or not _finished(joint) or not _finished(evidence.main) or joint is evidence.main:
        return None
    lines = [*_lines(evidence, evidence.main, joint, seconds)]
    return DataTable(
        ["what", "MERIT", f"joint training ({joint.name})", "MERIT ÷ joint"],
        [[line.what, line.merit, line.joint, NONE if line.ratio is None else f"{line.ratio:.3g}"] for line in lines],
    )


def _lines(
    evidence: Evidence, main: MethodEvidence, joint: MethodEvidence, seconds: Mapping[str, float]
) -> Iterator[_Line]:
    tokens = [sum(item.supervised_tokens for item in _results(method)) for method in (main, joint)]
    yield _Line("supervised tokens trained on", count(tokens[0]), count(tokens[1]), _ratio(*tokens))
    before = seconds.get("conflict", 0.0) + seconds.get("split", 0.0)
    if before:
        yield _Line("finding the conflict, and splitting", duration(before), NONE)
    ours = [item.seconds for item in _results(main)]
    theirs = sum(item.seconds for item in _results(joint))
    yield _Line("training, one machine", duration(sum(ours)), duration(theirs), _ratio(sum(ours), theirs))
    workers = len(main.branches)
    if workers < 2:
        return
    # Joint training on K machines is given a perfect speed-up and a free network: nobody can do better.
    yield _Line(
        f"training, {workers} machines",
        f"{duration(max(ours))} (the longest branch)",
        f"{duration(theirs / workers)} at best",
        _ratio(max(ours), theirs / workers),
    )
    if merge := seconds.get("merge", 0.0):
        yield _Line("merging", duration(merge), NONE)
    moved = sum(branch.checkpoint_bytes for branch in main.branches)
    steps = sum(item.steps for item in _results(joint))
    if evidence.conflict and moved and steps:
        synchronised = 2 * (workers - 1) * _BYTES * evidence.conflict.parameters * steps
        yield _Line(
            f"bytes between {workers} machines",
            f"{data_size(moved)}, once",
            f"{data_size(synchronised)}, in {count(steps)} steps",
            _ratio(moved, synchronised),
        )


def _finished(method: MethodEvidence) -> bool:
    return bool(method.branches) and all(branch.result for branch in method.branches)


def _results(method: MethodEvidence) -> list[BranchResult]:
    return [branch.result for branch in method.branches if branch.result]


def _ratio(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs else None
