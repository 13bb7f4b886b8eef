"""The costs of a run: what is known of the model, the costs by stage and method, and their table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from merit.base.record import Record
from merit.base.words import NONE, compact, data_size, duration
from merit.config.sections import LoraSection, Role, TrainConfig
from merit.data.example import IGNORED, Encoded
from merit.data.mixture import Mixture
from merit.models.checkpoint import Checkpoint
from merit.models.layout import FROZEN, role_of
from merit.plan.memory import BranchMemory
from merit.split.splitter import find_splitter

_SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size")
_MEASURED_TOKENS = 1024
_REPEATS = 3


class ModelFacts(Record):
    """What the costs depend on in θ0, read from its folder without loading it.

    `hidden` holds what is known of its shape: `hidden_size`, `num_hidden_layers`, `vocab_size`. What is missing there
    is left out of the memory estimate.
    """

    parameters: int
    trainable: int  # all of them in full fine-tuning, the adapters' with LoRA
    bytes_per_parameter: int  # as stored on disk
    hidden: dict[str, int]


def model_facts(checkpoint: Checkpoint, lora: LoraSection | None, freeze: Sequence[Role] | None = None) -> ModelFacts:
    """Size and shape of a model, from its headers and its config.json. A vision-language model has the shape of its
    language part, and only what is not frozen counts as trained."""
    parameters = checkpoint.elements
    frozen: set[Role] = set()
    if "vision_config" in checkpoint.config:
        frozen = set(FROZEN if freeze is None else freeze)
    names = [name for name in checkpoint.tensors if role_of(name) not in frozen] if frozen else [*checkpoint.tensors]
    trainable = sum(checkpoint.info(name).elements for name in names) if frozen else parameters
    if lora is not None:
        # PEFT's `all-linear`: every weight matrix but embeddings and head.
        apart = {checkpoint.embedding, checkpoint.head}
        shapes = [checkpoint.info(name).shape for name in names if name not in apart]
        trainable = sum(lora.r * (shape[0] + shape[1]) for shape in shapes if len(shape) == 2)
    text = checkpoint.config.get("text_config")
    config = text if isinstance(text, dict) and "hidden_size" not in checkpoint.config else checkpoint.config
    shape = {key: value for key in _SHAPE if isinstance(value := config.get(key), int)}
    return ModelFacts(
        parameters=parameters,
        trainable=trainable,
        bytes_per_parameter=round(checkpoint.nbytes / parameters),
        hidden=shape,
    )


def measure_speed(folder: Path, train: TrainConfig, mixture: Mixture) -> float:
    """Tokens a second of forward and backward on this machine's device: the best of three, after a warm-up."""
    import torch

    from merit.compute.losses import supervised_nll
    from merit.models.loading import autocast, load_model, pick_precision

    model = load_model(folder).train()
    precision = pick_precision(train.precision)
    counts = [item.train for item in mixture.datasets]
    length = max(2, round(sum(item.tokens for item in counts) / sum(item.examples for item in counts)))
    share = sum(item.supervised_tokens for item in counts) / sum(item.tokens for item in counts)
    supervised = max(1, round(length * share))
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (length,)).tolist()
    row = Encoded(ids, [IGNORED] * (length - supervised) + ids[length - supervised :])
    rows = [row] * max(1, _MEASURED_TOKENS // length)
    best = 0.0
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        with autocast(precision):
            loss = supervised_nll(model, rows).nll.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        best = max(best, len(rows) * length / (time.perf_counter() - started))
    return best


class BranchCost(Record):
    """Training one branch."""

    tokens: int  # over all epochs, prompts included: compute is charged by them
    supervised_tokens: int
    steps: int
    flops: float
    hours: float | None  # None where no speed is known


class MethodCost(Record):
    """Training one method: its branches one after the other, or each on a device of its own."""

    name: str
    splitter: str
    configured: bool  # False for joint training that is planned for comparison only
    branches: list[BranchCost]
    rounds: int = 1  # how often its branches are merged

    @property
    def is_joint(self) -> bool:
        """One branch on everything: joint training."""
        return find_splitter(self.splitter).one_group

    @property
    def hours(self) -> float | None:
        """Device hours of all branches."""
        return total_hours(branch.hours for branch in self.branches)

    @property
    def longest_hours(self) -> float | None:
        """Hours when every branch has a device: those of the longest."""
        hours = [branch.hours for branch in self.branches if branch.hours is not None]
        return max(hours) if len(hours) == len(self.branches) else None


class StageCost(Record):
    """One stage."""

    stage: str
    tokens: int
    supervised_tokens: int
    flops: float
    hours: float | None
    memory_bytes: int | None  # the largest process's
    disk_bytes: int


class Traffic(Record):
    """Bytes between machines, K branches on K machines against joint training on K data-parallel workers."""

    machines: int
    theta0_out: int
    data_out: int
    checkpoints_back: int  # of all rounds
    merges_out: int = 0  # from which the branches go on, after every round but the last
    states_out: int = 0  # of training, where a store brings them to the machines of the next round
    sketches_back: int = 0  # of the branches' inputs, at most; 0 if no merge rule weighs by them
    joint_steps: int
    joint_step_per_worker: int  # 2 (K − 1) / K of the gradients' bytes: a ring all-reduce
    joint_total: int  # all workers, all steps

    @property
    def total(self) -> int:
        """All bytes that the branches move."""
        between = self.merges_out + self.states_out
        return self.theta0_out + self.data_out + self.checkpoints_back + between + self.sketches_back


class Plan(Record):
    """What a run will cost. Every figure rests on the `assumptions`, which are sentences."""

    model: ModelFacts
    tokens_per_second: float | None
    stages: list[StageCost]  # gradients, train (all configured methods), merge, evaluate
    methods: list[MethodCost]  # the main one first, joint training always among them
    traffic: Traffic | None  # None with a single branch
    assumptions: list[str]
    memory: BranchMemory

    @property
    def main(self) -> MethodCost:
        return self.methods[0]

    @property
    def joint(self) -> MethodCost:
        return next(method for method in self.methods if method.is_joint)


HEADER = ["stage", "tokens", "supervised", "FLOPs", "device time", "longest branch", "memory", "disk", "moved"]


def plan_rows(plan: Plan) -> list[list[str]]:
    """Header and cells, all strings: the stages in order, training method by method, then the sum of the run.

    `moved` are bytes between machines, one machine a branch; for joint training, on as many data-parallel workers.
    """
    gradients, train, merge, evaluate = plan.stages
    whole = StageCost(
        stage="whole run",
        tokens=sum(stage.tokens for stage in plan.stages),
        supervised_tokens=sum(stage.supervised_tokens for stage in plan.stages),
        flops=sum(stage.flops for stage in plan.stages),
        hours=total_hours(stage.hours for stage in plan.stages),
        memory_bytes=max(stage.memory_bytes or 0 for stage in plan.stages),
        disk_bytes=sum(stage.disk_bytes for stage in plan.stages),
    )
    methods = [_method(plan, method, train) for method in plan.methods]
    return [HEADER, _stage(gradients), *methods, _stage(merge), _stage(evaluate), _stage(whole)]


def total_hours(hours: Iterable[float | None]) -> float | None:
    """Their sum; None where one is not known."""
    known = [*hours]
    return None if None in known else sum(hour or 0.0 for hour in known)


def flops(number: float) -> str:
    """3.2e17 → "320 PFLOP"."""
    for size, unit in ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} FLOP"


def _stage(stage: StageCost) -> list[str]:
    return [
        stage.stage,
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
    told = f"{count} branches" + (f", {method.rounds} rounds" if method.rounds > 1 else "")
    name = f"train {method.name} ({told})" if count > 1 else f"train {method.name}"
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
