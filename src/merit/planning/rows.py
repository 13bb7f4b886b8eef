"""A plan as a table."""

from __future__ import annotations

from merit.planning.result import MethodCost, Plan, StageCost
from merit.report.words import NONE, compact, data_size, duration

HEADER = ["stage", "tokens", "supervised", "FLOPs", "device time", "longest branch", "memory", "disk", "moved"]


def plan_rows(plan: Plan) -> list[list[str]]:
    """Header and cells, all strings: the stages in order, training method by method, then the sum of the run.

    `moved` are bytes between machines, one machine a branch; for joint training, on as many data-parallel workers.
    """
    stages = {stage.stage: stage for stage in plan.stages}
    train = stages["train"]
    rows = [HEADER, _stage("gradients", stages["gradients"])]
    for method in plan.methods:
        rows.append(_method(plan, method, train))
    rows += [_stage("merge", stages["merge"]), _stage("evaluate", stages["evaluate"])]
    hours = [stage.hours for stage in plan.stages]
    rows.append(
        [
            "whole run",
            compact(sum(stage.tokens for stage in plan.stages)),
            compact(sum(stage.supervised_tokens for stage in plan.stages)),
            flops(sum(stage.flops for stage in plan.stages)),
            NONE if None in hours else _time(sum(hour or 0.0 for hour in hours)),
            NONE,
            data_size(max(stage.memory_bytes or 0 for stage in plan.stages)),
            data_size(sum(stage.disk_bytes for stage in plan.stages)),
            NONE,
        ]
    )
    return rows


def flops(number: float) -> str:
    """3.2e17 → "320 PFLOP"."""
    for size, unit in ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} FLOP"


def _stage(name: str, stage: StageCost) -> list[str]:
    return [
        name,
        compact(stage.tokens) if stage.tokens else NONE,
        compact(stage.supervised_tokens) if stage.supervised_tokens else NONE,
        flops(stage.flops),
        _time(stage.hours),
        NONE,
        NONE if stage.memory_bytes is None else data_size(stage.memory_bytes),
        data_size(stage.disk_bytes) if stage.disk_bytes else NONE,
        NONE,
    ]


def _method(plan: Plan, method: MethodCost, train: StageCost) -> list[str]:
    count = len(method.branches)
    name = f"train {method.name} ({count} branches)" if count > 1 else f"train {method.name}"
    share = train.disk_bytes if method is plan.main else 0
    return [
        name if method.configured else f"{name}, if it were run",
        compact(sum(branch.tokens for branch in method.branches)),
        compact(sum(branch.supervised_tokens for branch in method.branches)),
        flops(sum(branch.flops for branch in method.branches)),
        _time(method.hours),
        _time(method.longest_hours),
        NONE if train.memory_bytes is None else data_size(train.memory_bytes),
        f"{data_size(share)} for all methods" if share else NONE,
        _moved(plan, method),
    ]


def _moved(plan: Plan, method: MethodCost) -> str:
    if plan.traffic is None:
        return NONE
    if method is plan.main:
        return data_size(plan.traffic.total)
    if method.is_joint:
        return f"{data_size(plan.traffic.joint_total)} on {plan.traffic.machines} workers"
    return NONE


def _time(hours: float | None) -> str:
    return NONE if hours is None else duration(hours * 3600)
