"""Chapter 6: time, memory, traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from merit.base.words import NONE, code, count, data_size, duration, plural, series
from merit.report.evidence import Evidence, MethodEvidence
from merit.report.figure import DataTable, Section, missing
from merit.report.figures.bars import stage_figure
from merit.report.sections.against_joint import against_joint
from merit.run.events import is_job

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
        stage["seconds"] += _number(event.get("seconds"))
        stage["memory"] = max(stage["memory"], _number(event.get("peak_memory_bytes")))
        stage["tokens"] = max(stage["tokens"], _number(event.get("tokens") or event.get("supervised_tokens")))
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


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
