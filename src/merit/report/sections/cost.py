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
from merit.report.sections.rounds import merging_seconds, moved_by, rounds_figure, rounds_of, synchronised
from merit.run.events import is_job

ID, TITLE = "cost", "What it cost"


@dataclass
class Spent:
    """What a stage or a job took, over all sessions: a run that was killed and resumed cost all of its time."""

    seconds: float = 0.0
    sessions: int = 0
    memory: float = 0.0  # bytes at the peak
    tokens: float = 0.0  # supervised


def cost(evidence: Evidence) -> Section:
    """What it cost."""
    spent = spent_on(evidence.events)
    stages = {name: item for name, item in spent.items() if not is_job(name)}
    timed = [(name, item.seconds) for name, item in stages.items() if item.seconds > 0]
    methods = [method for method in evidence.methods if method.results]
    if not timed and not methods:
        return missing(ID, TITLE, "Nothing has been timed in this run yet.")
    context = {
        "figure": stage_figure(timed) if timed else None,
        "stages": _stage_table(stages) if stages else None,
        "methods": _method_table(methods, spent) if methods else None,
        "against": against_joint(evidence, stages),
        "traffic": list(_traffic(evidence)),
        "rounds": rounds_figure(evidence),
        "hosts": series(hosts(evidence.events), limit=6),
        "failures": [
            f"{event.get('stage')}: {str(event.get('error'))[:300]}"
            for event in evidence.events
            if event.get("event") == "failed"
        ],
    }
    return Section(ID, TITLE, "cost", context)


def hosts(events: Sequence[dict[str, Any]]) -> list[str]:
    """The machines that the run ran on."""
    return sorted({str(event["host"]) for event in events if event.get("host")})


def spent_on(events: Sequence[dict[str, Any]]) -> dict[str, Spent]:
    """Stage or job → what it took. The time of a job lies inside its stage's."""
    found: dict[str, Spent] = {}
    for event in events:
        name, kind = event.get("stage"), event.get("event")
        if not isinstance(name, str) or kind not in ("start", "end", "failed"):
            continue
        item = found.setdefault(name, Spent())
        if kind == "start":
            item.sessions += 1
            continue
        item.seconds += plausible(event.get("seconds")) or 0.0
        item.memory = max(item.memory, plausible(event.get("peak_memory_bytes")) or 0.0)
        item.tokens = max(item.tokens, plausible(event.get("tokens") or event.get("supervised_tokens")) or 0.0)
    return found


def _stage_table(stages: Mapping[str, Spent]) -> DataTable:
    rows = [
        [
            name,
            duration(item.seconds),
            str(item.sessions),
            data_size(item.memory) if item.memory else NONE,
            count(item.tokens) if item.tokens else NONE,
        ]
        for name, item in stages.items()
    ]
    return DataTable(["stage", "time", "sessions", "peak memory", "supervised tokens"], rows)


def _method_table(methods: Sequence[MethodEvidence], spent: Mapping[str, Spent]) -> DataTable:
    rows = []
    for method in methods:
        seconds = [result.seconds for result in method.results]
        jobs = [spent.get(f"train {method.name} {branch.index}", Spent()) for branch in method.branches]
        memory = max(job.memory for job in jobs)
        tokens = count(sum(result.supervised_tokens for result in method.results))
        times = [duration(sum(seconds)), duration(max(seconds))]
        rows.append([method.name, method.told_branches, tokens, *times, data_size(memory) if memory else NONE])
    header = ["method", "branches", "supervised tokens", "training, all branches", "longest branch", "peak memory"]
    return DataTable(header, rows)


def _traffic(evidence: Evidence) -> Iterator[str]:
    """What the branches had to exchange, against what synchronised joint training would have."""
    main, joint, conflict = evidence.main, evidence.joint, evidence.conflict
    workers = len(main.branches)
    size = main.checkpoint_bytes
    if size and workers > 1:
        rounds, total = rounds_of(evidence, main.name), data_size(moved_by(evidence, main))
        if rounds == 1:
            yield (
                f"On {workers} machines the branches would move one checkpoint each, once: {workers} × "
                f"{data_size(size)} = {total}. During training they exchange nothing."
            )
        else:
            yield (
                f"On {workers} machines each branch would send its checkpoint after each of {rounds} rounds and "
                f"get the merge after all but the last, {workers} × {2 * rounds - 1} × {data_size(size)} = {total}. "
                "Within a round they exchange nothing."
            )
    steps = sum(result.steps for result in joint.results) if joint else 0
    if joint and conflict and steps and workers > 1:
        everything = synchronised(evidence, joint, workers)
        yield (
            f"Joint training ({code(joint.name)}) on {workers} data-parallel workers would move about "
            f"{data_size(everything / workers / steps)} out of and into each worker in every one of its "
            f"{plural(steps, 'step')} (a ring all-reduce of fp32 gradients, 2·(K − 1)/K·4 bytes a parameter): "
            f"{data_size(everything / workers)} a worker."
        )


def stage_figure(stages: Sequence[tuple[str, float]]) -> Figure:
    """Seconds that each stage took, over all sessions."""
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
        title="Time per stage",
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


def against_joint(evidence: Evidence, stages: Mapping[str, Spent]) -> DataTable | None:
    """None where the run has no finished joint training, or the main method no finished branches."""
    main, joint = evidence.main, evidence.joint
    if joint is None or joint is main or not joint.finished or not main.finished:
        return None
    rows = [
        [what, ours, theirs, f"{ratio[0] / ratio[1]:.3g}" if ratio[1] else NONE]
        for what, ours, theirs, *ratio in _lines(evidence, joint, {name: item.seconds for name, item in stages.items()})
    ]
    return DataTable(["what", "MERIT", f"joint training ({joint.name})", "MERIT ÷ joint"], rows)


def _lines(
    evidence: Evidence, joint: MethodEvidence, seconds: Mapping[str, float]
) -> Iterator[tuple[str, str, str, float, float]]:
    """What is compared, MERIT's and joint training's figure in words, and the two as numbers; (0, 0): no ratio."""
    main = evidence.main
    tokens = [sum(result.supervised_tokens for result in method.results) for method in (main, joint)]
    yield "supervised tokens trained on", count(tokens[0]), count(tokens[1]), tokens[0], tokens[1]
    if before := seconds.get("conflict", 0.0) + seconds.get("split", 0.0):
        yield "finding the conflict, and splitting", duration(before), NONE, 0, 0
    ours = [result.seconds for result in main.results]
    theirs = sum(result.seconds for result in joint.results)
    yield "training, one machine", duration(sum(ours)), duration(theirs), sum(ours), theirs
    workers = len(main.branches)
    if workers < 2:
        return
    # Joint training on K machines is given a perfect speed-up and a free network: nobody can do better.
    rounds, best = rounds_of(evidence, main.name), f"{duration(theirs / workers)} at best"
    waited = _until_the_last(evidence, main)
    longest = f"{duration(waited)} (the longest branch{'' if rounds == 1 else ' of each round'})"
    yield f"training, {workers} machines", longest, best, waited, theirs / workers
    if merging := merging_seconds(evidence, main):
        yield "merging", duration(merging), NONE, 0, 0
    steps = sum(result.steps for result in joint.results)
    sent, exchanged = moved_by(evidence, main), synchronised(evidence, joint, workers)
    if sent and exchanged:
        often = "once" if rounds == 1 else f"in {rounds} rounds"
        in_steps = f"{data_size(exchanged)}, in {count(steps)} steps"
        yield f"bytes between {workers} machines", f"{data_size(sent)}, {often}", in_steps, sent, exchanged


def _until_the_last(evidence: Evidence, method: MethodEvidence) -> float:
    """Seconds until the last of its branches is trained, a machine each. The table knows how long rounds waited."""
    rows = evidence.table.rows if evidence.table else []
    told = [row.machine_seconds for row in rows if row.kind == "merge" and row.label == method.name]
    return next((seconds for seconds in told if seconds), max(result.seconds for result in method.results))
