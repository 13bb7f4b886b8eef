"""Chapter 6: time, memory, traffic, and all of them beside joint training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merit.base.words import (
    NONE,
    code,
    count,
    data_size,
    duration,
    plural,
    series,
)
from merit.report.drawing import DataTable, Figure, row_axis, share
from merit.report.evidence import Evidence, MethodEvidence
from merit.report.fit import plausible
from merit.report.page import Section, missing
from merit.run.events import is_job
from merit.train.spec import BranchResult

ID, TITLE = "cost", "What it cost"


def cost(evidence: Evidence) -> Section:
    """What it cost."""
    everything = _stages(evidence.events)
    jobs = {name: stage for name, stage in everything.items() if is_job(name)}
    stages = {name: stage for name, stage in everything.items() if name not in jobs}
    timed = [(name, stage["seconds"]) for name, stage in stages.items() if stage["seconds"] > 0]
    methods = [method for method in evidence.methods if any(branch.result for branch in method.branches)]
    if not timed and not methods:
        return missing(ID, TITLE, "Nothing has been timed in this run yet.")
    context = {
        "figure": stage_figure(timed) if timed else None,
        "stages": _table(stages) if stages else None,
        "methods": DataTable(
            ["method", "branches", "supervised tokens", "training, all branches", "longest branch", "peak memory"],
            [_method_row(method, jobs) for method in methods],
        )
        if methods
        else None,
        "against": against_joint(evidence, stage_totals(evidence.events)),
        "traffic": list(_traffic(evidence)),
        "hosts": series(sorted({str(event["host"]) for event in evidence.events if event.get("host")}), limit=6),
        "failures": _failures(evidence.events),
    }
    return Section(ID, TITLE, "cost", context)


def stage_totals(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each stage, over all sittings; what jobs say of themselves lies inside."""
    return {name: found["seconds"] for name, found in _stages(events).items() if not is_job(name)}


def _stages(events: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sums over all sittings: a run that was killed and resumed cost all of its time."""
    stages: dict[str, dict[str, Any]] = {}
    for event in events:
        name, kind = event.get("stage"), event.get("event")
        if not isinstance(name, str) or kind not in ("start", "end", "failed"):
            continue
        stage = stages.setdefault(name, {"seconds": 0.0, "sittings": 0, "memory": 0, "tokens": 0})
        if kind == "start":
            stage["sittings"] += 1
            continue
        stage["seconds"] += plausible(event.get("seconds")) or 0.0
        stage["memory"] = max(stage["memory"], plausible(event.get("peak_memory_bytes")) or 0.0)
        stage["tokens"] = max(stage["tokens"], plausible(event.get("tokens") or event.get("supervised_tokens")) or 0.0)
    return stages


def _table(stages: dict[str, dict[str, Any]]) -> DataTable:
    return DataTable(
        ["stage", "time", "sittings", "peak memory", "supervised tokens"],
        [
            [
                name,
                duration(stage["seconds"]),
                str(stage["sittings"]),
                data_size(stage["memory"]) if stage["memory"] else "–",
                count(stage["tokens"]) if stage["tokens"] else "–",
            ]
            for name, stage in stages.items()
        ],
    )


def _method_row(method: MethodEvidence, jobs: dict[str, dict[str, Any]]) -> list[str]:
    results = [branch.result for branch in method.branches if branch.result]
    seconds = [result.seconds for result in results]
    done = f"{len(results)}" if len(results) == len(method.branches) else f"{len(results)} of {len(method.branches)}"
    tokens = sum(result.supervised_tokens for result in results)
    memory = max(
        (jobs.get(f"train {method.name} {k}", {}).get("memory", 0) for k in range(len(method.branches))), default=0
    )
    return [
        method.name,
        done,
        count(tokens),
        duration(sum(seconds)),
        duration(max(seconds, default=0.0)),
        data_size(memory) if memory else NONE,
    ]


def _traffic(evidence: Evidence) -> Iterator[str]:
    """What the branches had to exchange, against what synchronised joint training would have."""
    branches = evidence.main.branches
    size = max((branch.checkpoint_bytes for branch in branches), default=0)
    if size and len(branches) > 1:
        yield (
            f"On {len(branches)} machines the branches would move one checkpoint each, once: {len(branches)} × "
            f"{data_size(size)} = {data_size(sum(branch.checkpoint_bytes for branch in branches))}. "
            "During training they exchange nothing."
        )
    joint, conflict = evidence.joint, evidence.conflict
    steps = sum(branch.result.steps for branch in joint.branches if branch.result) if joint else 0
    workers = len(branches)
    if joint and conflict and steps and workers > 1:
        moved = 2 * (workers - 1) / workers * 4 * conflict.parameters
        yield (
            f"Joint training ({code(joint.name)}) on {workers} data-parallel workers would move about "
            f"{data_size(moved)} out of and into each worker in every one of its {plural(steps, 'step')} "
            f"(a ring all-reduce of fp32 gradients, 2·(K − 1)/K·4 bytes a parameter): "
            f"{data_size(moved * steps)} a worker."
        )


def _failures(events: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{event.get('stage')}: {str(event.get('error'))[:300]}" for event in events if event.get("event") == "failed"
    ]


def stage_figure(stages: Sequence[tuple[str, float]]) -> Figure:
    """Seconds a stage took, over all sittings."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [seconds for _, seconds in stages],
        "y": list(range(len(stages))),
        "text": [duration(seconds) for _, seconds in stages],
        "textposition": "auto",
        "marker": {"color": "--accent"},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    total = sum(seconds for _, seconds in stages)
    longest = max(stages, key=lambda stage: stage[1])
    return Figure(
        id="stages",
        title="Time a stage",
        alt=f"Bar chart of the time of {len(stages)} stages, {duration(total)} in all; "
        f"the longest is {longest[0]} with {duration(longest[1])}.",
        traces=[trace],
        layout={
            "xaxis": {"title": {"text": "seconds"}},
            "yaxis": row_axis([name for name, _ in stages]),
            "bargap": 0.35,
        },
        table=DataTable(["stage", "time", "share"], [[n, duration(s), share(s, total)] for n, s in stages]),
        height=100 + 30 * len(stages),
    )


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
