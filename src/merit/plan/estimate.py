"""Estimates a run: tokens, FLOPs, hours, bytes in memory, on disk and between machines.

`plan_run` reads what a configuration names; `plan` is arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError, Problems
from merit.base.machine import visible_gpus
from merit.base.progress import SILENT, Progress
from merit.config import RunConfig
from merit.config.sections import UNSPLIT, EvaluateConfig
from merit.context import RunContext
from merit.data.check import CheckReport
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.gradients.sketch import LEAST
from merit.gradients.store import HASHED
from merit.models.checkpoint import Checkpoint
from merit.plan.costs import (
    BranchCost,
    MethodCost,
    ModelFacts,
    Plan,
    StageCost,
    Traffic,
    measure_speed,
    model_facts,
)
from merit.plan.preflight import check_run
from merit.run.layout import MAIN_METHOD
from merit.split.partition import Partition
from merit.split.splitter import find_splitter

FP32 = 4
ADAMW = 16  # bytes a trained parameter: fp32 weight, gradient and AdamW's two moments
TOKEN_BYTES = 8  # of an encoded token: its id and its label
ACTIVATION = 34  # bytes a token, layer and hidden unit in half precision, without recomputation
STATES_KEPT = 2  # TRL checkpoints of a branch in training

_MERGED = {"input": FP32, "float32": FP32, "bfloat16": 2, "float16": 2}
TRAIN, TRAIN_LORA, FORWARD = 6, 4, 2  # FLOPs a parameter and token
DISK_SPEED = 500e6  # bytes a second, read or written: an ordinary SSD
JOINT = "joint"
_AUTO = 2  # axes that `axes: auto` is taken to find


def plan_run(path: Path, tokens_per_second: float | None, progress: Progress = SILENT) -> Plan:
    """The plan of the run that `path` describes. Nothing is written.

    Args:
        tokens_per_second: speed of a training step; measured with θ0 on this machine where it is None.

    Raises:
        InputError: the configuration, θ0 or the data is wrong.
    """
    context = RunContext.open(path, progress=progress)
    freeze = context.config.model.freeze
    facts = model_facts(Checkpoint.open(context.model.path), context.config.train.lora, freeze)
    mixture = _mixture(context, check_run(path, progress))
    if tokens_per_second is None:
        tokens_per_second = measure_speed(context.model.path, context.config.train, mixture)
    launch = context.config.launch
    return plan(
        context.config,
        mixture,
        facts,
        tokens_per_second=tokens_per_second,
        partitions=_known_partitions(context),
        at_once=launch.parallel or max(1, len(visible_gpus())),
    )


def _mixture(context: RunContext, report: CheckReport) -> Mixture:
    if not report.ok:
        raise Problems([InputError(line) for line in report.problems])
    found = [(item.unseen, item.summary) for item in report.datasets if item.summary is not None]
    return Mixture(
        datasets=[summary for unseen, summary in found if not unseen],
        unseen=[summary for unseen, summary in found if unseen],
        max_length=context.config.train.max_length,
        tokenizer_fingerprint="",
    )


def _known_partitions(context: RunContext) -> dict[str, Partition]:
    """The partitions of a run that has got that far."""
    known = {}
    for method in context.methods:
        if method.dir.partition.is_file():
            known[method.name] = Partition.load(method.dir.partition)
    return known


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
        traffic=traffic(
            model,
            branches,
            sum(branch.tokens for branch in main.branches) / config.train.epochs,
            joint.branches[0].steps,
        )
        if branches > 1
        else None,
        assumptions=assumptions(config, model, tokens_per_second, known_split=MAIN_METHOD in (partitions or {})),
    )


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
        gradient_memory(model, config.calibration.batch_tokens),
        sketch_disk(config, model, len(mixture.datasets)) if several else 0,
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
        memory_bytes=training_memory(config, model),
        disk_bytes=training_disk(config, model, len(branches), at_once),
    )


def _merging(config: RunConfig, model: ModelFacts, methods: list[MethodCost]) -> StageCost:
    """Bound by the disk: every checkpoint is read once, every merged model written once."""
    configured = [method for method in methods if method.configured]
    read = FP32 * model.parameters * sum(len(method.branches) for method in configured)
    written = merge_disk(config, model, sum(_scales(config, method) for method in configured))
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
        forward_memory(model, config.evaluate.batch_tokens),
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


@dataclass(frozen=True)
class TokenCount:
    """Tokens that compute goes by, and those of them that carry loss."""

    tokens: float
    supervised: float

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(self.tokens + other.tokens, self.supervised + other.supervised)

    def __mul__(self, factor: float) -> TokenCount:
        return TokenCount(self.tokens * factor, self.supervised * factor)


NOTHING = TokenCount(0.0, 0.0)


def total(counts: Iterable[TokenCount]) -> TokenCount:
    """Their sum."""
    return sum(counts, NOTHING)


def epoch_tokens(dataset: DatasetSummary) -> TokenCount:
    """One epoch of a dataset, its weight applied."""
    return TokenCount(dataset.train.tokens, dataset.train.supervised_tokens) * dataset.weight


def calibration_tokens(mixture: Mixture, examples: int) -> TokenCount:
    """What the gradient stage goes through: `examples` of every dataset, at the dataset's mean length."""
    return total(_some(dataset.train, examples) for dataset in mixture.datasets)


def group_tokens(mixture: Mixture, splitter: str, groups: int, partition: Partition | None) -> list[TokenCount]:
    """Tokens an epoch of each group: those of the partition, or the balanced ones that a splitter aims at.

    No balance can make the largest group smaller than the largest dataset.
    """
    each = {dataset.name: epoch_tokens(dataset) for dataset in mixture.datasets}
    if partition is not None:
        return [total(each[name] for name in group.datasets if name in each) for group in partition.groups]
    everything = total(each.values())
    found = find_splitter(splitter)
    if found.one_group or groups == 1:
        return [everything]
    if found.whole_mixture:
        return [everything] * groups
    heaviest = max(each.values(), key=lambda count: count.supervised)
    if heaviest.supervised <= everything.supervised / groups:
        return [everything * (1 / groups)] * groups
    rest = everything + heaviest * -1.0
    return [heaviest, *[rest * (1 / (groups - 1))] * (groups - 1)]


def scoring_tokens(mixture: Mixture, config: EvaluateConfig) -> TokenCount:
    """Loss of one model on every held-out example that is measured, unseen datasets and drift included."""
    held_out = total(_some(dataset.held_out, config.held_out) for dataset in [*mixture.datasets, *mixture.unseen])
    drift = config.drift * config.max_new_tokens
    return held_out + TokenCount(drift, drift)


def answering_tokens(mixture: Mixture, config: EvaluateConfig) -> TokenCount:
    """Greedy answers of one model: the prompts, and every answer at its longest."""
    scored = [dataset for dataset in [*mixture.datasets, *mixture.unseen] if dataset.scoring]
    answers = 0.0
    for dataset in scored:
        part = _some(dataset.held_out, config.generate)
        answers += part.tokens - part.supervised
        answers += min(config.generate, dataset.held_out.examples) * config.max_new_tokens
    return TokenCount(answers, 0.0)


def _some(counts: SplitCounts, examples: int) -> TokenCount:
    """`examples` of a dataset's part, or all that it has, at its mean length."""
    share = min(examples, counts.examples) / counts.examples if counts.examples else 0.0
    return TokenCount(counts.tokens, counts.supervised_tokens) * share


def training_memory(config: RunConfig, model: ModelFacts) -> int:
    """Weights, gradients, AdamW, and the activations of one micro-batch."""
    if config.train.lora is None:
        states = ADAMW * model.trainable
    else:
        states = model.bytes_per_parameter * model.parameters + ADAMW * model.trainable
    return states + activations(model, config.train.micro_batch_tokens)


def forward_memory(model: ModelFacts, batch_tokens: int) -> int:
    """fp32 weights and one batch's logits."""
    return FP32 * model.parameters + FP32 * batch_tokens * model.hidden.get("vocab_size", 0)


def gradient_memory(model: ModelFacts, batch_tokens: int) -> int:
    """fp32 weights and the activations of one batch; gradients are folded layer by layer and freed at once."""
    return FP32 * model.parameters + activations(model, batch_tokens)


def activations(model: ModelFacts, tokens: int) -> int:
    """What backward needs of `tokens` tokens, logits and their gradient in fp32 included; 0 for an unknown shape."""
    width, layers = model.hidden.get("hidden_size", 0), model.hidden.get("num_hidden_layers", 0)
    return tokens * (ACTIVATION * width * layers + 2 * FP32 * model.hidden.get("vocab_size", 0))


def sketch_disk(config: RunConfig, model: ModelFacts, datasets: int) -> int:
    """Two half-sets of fp32 sketch numbers a dataset, and the same hashed, for what needs the halves."""
    calibration = config.calibration
    width = model.hidden.get("hidden_size", 0)
    buckets = max(math.ceil(width / calibration.fold), min(LEAST, width))
    fold = width / buckets if width else calibration.fold
    factor = {"fold": fold, "flat": calibration.stride, "full": 1}[calibration.sketch]
    numbers = calibration.hashed or math.ceil(model.parameters / factor)
    return 2 * FP32 * datasets * (numbers + (HASHED if numbers > 4 * HASHED else 0))


def training_disk(config: RunConfig, model: ModelFacts, branches: int, at_once: int) -> int:
    """The branches' fp32 checkpoints, and the states of those in training (weights and AdamW's moments)."""
    state = STATES_KEPT * (ADAMW - FP32) * model.trainable
    return branches * FP32 * model.parameters + min(at_once, branches) * state


def merge_disk(config: RunConfig, model: ModelFacts, models: int) -> int:
    """The merged models written."""
    return models * _MERGED[config.merge.dtype] * model.parameters


def traffic(model: ModelFacts, machines: int, tokens: float, joint_steps: int) -> Traffic:
    """K branches on K machines, against joint training on K data-parallel workers."""
    step = round(2 * (machines - 1) / machines * FP32 * model.trainable)
    return Traffic(
        machines=machines,
        theta0_out=machines * model.bytes_per_parameter * model.parameters,
        data_out=round(TOKEN_BYTES * tokens),
        checkpoints_back=machines * FP32 * model.parameters,
        joint_steps=joint_steps,
        joint_step_per_worker=step,
        joint_total=machines * step * joint_steps,
    )


def assumptions(
    config: RunConfig, model: ModelFacts, tokens_per_second: float | None, *, known_split: bool
) -> list[str]:
    """The sentences that belong to this plan."""
    lora = config.train.lora is not None
    lines = [
        f"FLOPs: N = {model.parameters:,} parameters; a training token costs "
        + ("4·N, since the frozen weights get no gradient (LoRA), " if lora else "6·N, ")
        + "a token of the gradient stage at most 6·N, a forward token 2·N. Attention over long contexts, and a second "
        "forward pass under gradient checkpointing, come on top.",
        "Hours are device hours: FLOPs at the speed of one device's full training step"
        + (
            f", {tokens_per_second:,.0f} tokens a second."
            if tokens_per_second is not None
            else ". No speed was given, so there are none."
        )
        + " On a CPU what prompts have in common runs once a batch, which is not counted.",
        "The time of a method on one device a branch is that of its longest branch; K devices are taken to be equal.",
        "Branches send nothing while they train. Joint training on K data-parallel workers is charged a ring "
        "all-reduce of fp32 gradients in every step, 2·(K − 1)/K·4 bytes a trained parameter and worker, and no time "
        "for it.",
        "Memory in training: "
        + (
            "the frozen weights in their own type, and 16 bytes an adapter parameter (fp32 weight, gradient, AdamW)"
            if lora
            else "16 bytes a parameter (fp32 weight, gradient and AdamW's two moments)"
        )
        + (
            f", plus activations of {config.train.micro_batch_tokens:,} tokens without recomputation."
            if {"hidden_size", "num_hidden_layers"} <= set(model.hidden)
            else "; activations are not counted, because the model's shape is not known."
        ),
        "Disk: branches are kept as fp32 checkpoints; a branch in training keeps two states of weights and moments.",
        "Merging goes at 500 MB a second, the speed of an ordinary SSD.",
        "Evaluation counts every answer at its longest, and greedy decoding at the speed of scoring, which is too fast "
        "by several times on most devices.",
    ]
    if not known_split and not find_splitter(config.split.splitter).whole_mixture:
        lines.append(
            "The split is not made yet: groups are taken to be as equal in tokens as the largest dataset allows."
        )
    if config.split.axes == "auto":
        lines.append("`axes: auto` is taken to find two axes, four groups.")
    return lines
