"""The estimate: plain arithmetic over the configuration, the mixture's counts and the model's size.

FLOPs, N parameters: a training token costs 6·N (forward 2·N, backward 4·N), a forward token 2·N, and with LoRA a
training token 4·N, because the frozen weights get no gradient. Time goes by FLOPs, at the speed of a full training
step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from merit.config import RunConfig
from merit.config.split import UNSPLIT
from merit.data.mixture import Mixture
from merit.planning import memory
from merit.planning.assumptions import assumptions
from merit.planning.result import BranchCost, MethodCost, ModelFacts, Plan, StageCost
from merit.planning.tokens import (
    NOTHING,
    TokenCount,
    answering_tokens,
    calibration_tokens,
    group_tokens,
    scoring_tokens,
    total,
)
from merit.run.layout import MAIN_METHOD
from merit.split.partition import Partition
from merit.split.splitter import find_splitter

TRAIN, TRAIN_LORA, FORWARD = 6, 4, 2  # FLOPs a parameter and token
DISK_SPEED = 500e6  # bytes a second, read or written: an ordinary SSD
JOINT = "joint"


def plan(
    config: RunConfig,
    mixture: Mixture,
    model: ModelFacts,
    *,
    tokens_per_second: float | None = None,
    partitions: Mapping[str, Partition] | None = None,
    at_once: int = 1,
) -> Plan:
    """What the run will cost.

    Args:
        tokens_per_second: tokens that one device puts through a full training step (forward and backward) a second;
            without it there are no hours.
        partitions: method → its partition, where the split has been made; otherwise balanced groups are assumed.
        at_once: branches that train at the same time and share one disk.
    """
    speed = None if tokens_per_second is None else TRAIN * model.parameters * tokens_per_second  # FLOPs a second
    methods = _methods(config, mixture, model, speed, partitions or {})
    main, joint = methods[0], next(method for method in methods if method.is_joint)
    branches = len(main.branches)
    return Plan(
        model=model,
        tokens_per_second=tokens_per_second,
        stages=[
            _gradients(config, mixture, model, speed),
            _training(config, model, methods, at_once),
            _merging(config, model, methods),
            _evaluation(config, mixture, model, methods, speed),
        ],
        methods=methods,
        traffic=memory.traffic(
            model,
            branches,
            sum(branch.tokens for branch in main.branches) / config.train.epochs,
            joint.branches[0].steps,
        )
        if branches > 1
        else None,
        assumptions=assumptions(config, model, tokens_per_second, known_split=MAIN_METHOD in (partitions or {})),
    )


_AUTO = 2  # axes that `axes: auto` is taken to find


def _methods(
    config: RunConfig, mixture: Mixture, model: ModelFacts, speed: float | None, partitions: Mapping[str, Partition]
) -> list[MethodCost]:
    wanted = [(MAIN_METHOD, config.split.splitter, config.split.axes, True)]
    wanted += [
        (name, baseline.splitter, baseline.axes or config.split.axes, True)
        for name, baseline in config.baselines.items()
    ]
    if not any(find_splitter(splitter).one_group for _, splitter, _, _ in wanted):
        wanted.append((JOINT, UNSPLIT, 0, False))
    methods = []
    for name, splitter, axes, configured in wanted:
        count = min(2**_AUTO, len(mixture.datasets)) if axes == "auto" else 2**axes
        groups = group_tokens(mixture, splitter, count, partitions.get(name))
        branches = [_branch(config, model, group * config.train.epochs, speed) for group in groups]
        methods.append(MethodCost(name=name, splitter=splitter, configured=configured, branches=branches))
    return methods


def _branch(config: RunConfig, model: ModelFacts, count: TokenCount, speed: float | None) -> BranchCost:
    flops = (TRAIN if config.train.lora is None else TRAIN_LORA) * model.parameters * count.tokens
    return BranchCost(
        tokens=round(count.tokens),
        supervised_tokens=round(count.supervised),
        steps=max(1, math.ceil(count.tokens / config.train.batch_tokens)),
        flops=flops,
        hours=_hours(flops, speed),
    )


def _gradients(config: RunConfig, mixture: Mixture, model: ModelFacts, speed: float | None) -> StageCost:
    several = len(mixture.datasets) > 1
    count = calibration_tokens(mixture, config.calibration.examples) if several else NOTHING
    return _stage(
        "gradients",
        count,
        TRAIN * model.parameters * count.tokens,
        speed,
        memory.gradient_memory(model, config.calibration.batch_tokens),
        memory.sketch_disk(config, model, len(mixture.datasets)) if several else 0,
    )


def _training(config: RunConfig, model: ModelFacts, methods: list[MethodCost], at_once: int) -> StageCost:
    branches = [branch for method in methods if method.configured for branch in method.branches]
    hours = [method.hours for method in methods if method.configured]
    return StageCost(
        stage="train",
        tokens=sum(branch.tokens for branch in branches),
        supervised_tokens=sum(branch.supervised_tokens for branch in branches),
        flops=sum(branch.flops for branch in branches),
        hours=None if None in hours else sum(hour or 0.0 for hour in hours),
        memory_bytes=memory.training_memory(config, model),
        disk_bytes=memory.training_disk(config, model, len(branches), at_once),
    )


def _merging(config: RunConfig, model: ModelFacts, methods: list[MethodCost]) -> StageCost:
    """Bound by the disk: every checkpoint is read once, every merged model written once."""
    configured = [method for method in methods if method.configured]
    read = memory.FP32 * model.parameters * sum(len(method.branches) for method in configured)
    written = memory.merge_disk(config, model, sum(_scales(config, method) for method in configured))
    return StageCost(
        stage="merge",
        tokens=0,
        supervised_tokens=0,
        flops=2.0 * model.parameters * sum(len(method.branches) for method in configured),
        hours=(read + written) / DISK_SPEED / 3600,
        memory_bytes=None,
        disk_bytes=written,
    )


def _evaluation(
    config: RunConfig, mixture: Mixture, model: ModelFacts, methods: list[MethodCost], speed: float | None
) -> StageCost:
    """θ0, every merged model, and the losses of the main method's branches."""
    whole = 1 + sum(_scales(config, method) for method in methods if method.configured)
    parts = len(methods[0].branches) if config.evaluate.branches and len(methods[0].branches) > 1 else 0
    scoring, answering = scoring_tokens(mixture, config.evaluate), answering_tokens(mixture, config.evaluate)
    count = total([scoring * (whole + parts), answering * whole])
    return _stage(
        "evaluate",
        count,
        FORWARD * model.parameters * count.tokens,
        speed,
        memory.forward_memory(model, config.evaluate.batch_tokens),
        0,
    )


def _scales(config: RunConfig, method: MethodCost) -> int:
    return len(config.merge.scales if method.name == MAIN_METHOD else config.baselines[method.name].scales)


def _stage(
    name: str, count: TokenCount, flops: float, speed: float | None, memory_bytes: int, disk_bytes: int
) -> StageCost:
    return StageCost(
        stage=name,
        tokens=round(count.tokens),
        supervised_tokens=round(count.supervised),
        flops=flops,
        hours=_hours(flops, speed),
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
    )


def _hours(flops: float, speed: float | None) -> float | None:
    return None if speed is None else flops / speed / 3600
