"""Estimates a run: tokens, FLOPs, hours, bytes in memory, on disk and between machines.

`plan_run` reads what a configuration names; `Estimate` is arithmetic. A `Count` is two float64 numbers: all tokens, by
which compute is charged, and those of them that carry loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError, Problems
from merit.base.machine import visible_gpus
from merit.base.progress import SILENT, Progress
from merit.base.words import data_size
from merit.config import RunConfig
from merit.config.sections import SKETCH_SHARE, UNSPLIT
from merit.context import RunContext
from merit.data.check import CheckReport
from merit.data.mixture import Mixture, SplitCounts
from merit.gradients.sketch import LEAST
from merit.gradients.store import HASHED
from merit.merge.traffic import carried, data_parallel, moved
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
    total_hours,
)
from merit.plan.memory import ADAMW, FP32, BranchMemory, activations, branch_memory, device_memory, shards
from merit.plan.preflight import check_run
from merit.run.layout import MAIN_METHOD
from merit.split.partition import Partition
from merit.split.splitter import find_splitter

TOKEN_BYTES = 8  # of an encoded token: its id and its label
STATES_KEPT = 2  # TRL checkpoints of a branch in training
TRAIN, TRAIN_LORA, FORWARD = 6, 4, 2  # FLOPs a parameter and token
DISK_SPEED = 500e6  # bytes a second, read or written: an ordinary SSD
JOINT = "joint"
_AUTO = 2  # axes that `axes: auto` is taken to find
_MERGED = {"input": FP32, "float32": FP32, "bfloat16": 2, "float16": 2}

Count = NDArray[np.float64]  # (2,)


def plan_run(
    path: Path, tokens_per_second: float | None, progress: Progress = SILENT, *, device: int | None = None
) -> Plan:
    """The plan of the run that `path` describes. Nothing is written.

    Args:
        tokens_per_second: speed of a training step; measured with θ0 on this machine where it is None.
        device: bytes of memory of the device that trains a branch; this machine's where it is None.

    Raises:
        InputError: the configuration, θ0 or the data is wrong.
    """
    context = RunContext.open(path, progress=progress)
    train, launch = context.config.train, context.config.launch
    mixture = _mixture(context, check_run(path, progress))
    if tokens_per_second is None:
        tokens_per_second = measure_speed(context.model.path, train, mixture)
    return Estimate(
        context.config,
        mixture,
        model_facts(Checkpoint.open(context.model.path), train.lora, context.config.model.freeze),
        tokens_per_second=tokens_per_second,
        partitions={
            method.name: Partition.load(method.dir.partition)
            for method in context.trained
            if method.dir.partition.is_file()
        },
        at_once=launch.parallel or max(1, len(visible_gpus())),
        shards=shards(launch, context.base),
        device=device if device is not None else device_memory(launch),
    ).plan


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


@dataclass(frozen=True)
class Estimate:
    """What the costs of a run depend on, and the costs.

    Attributes:
        tokens_per_second: tokens that one device puts through a full training step (forward and backward) a second;
            without it there are no hours.
        partitions: method → its partition, where the split has been made; otherwise balanced groups are assumed.
        at_once: branches that train at the same time and share one disk.
        shards: processes that share one branch's weights, gradients and moments.
        device: bytes of memory of one device, if that is known.
    """

    config: RunConfig
    mixture: Mixture
    model: ModelFacts
    tokens_per_second: float | None = None
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    at_once: int = 1
    shards: int = 1
    device: int | None = None

    @cached_property
    def plan(self) -> Plan:
        """What the run will cost."""
        main, joint = self.methods[0], next(method for method in self.methods if method.is_joint)
        tokens = sum(branch.tokens for branch in main.branches) / self.config.train.epochs
        machines = len(main.branches)
        return Plan(
            model=self.model,
            tokens_per_second=self.tokens_per_second,
            stages=[self._gradients, self._training, self._merging, self._evaluation],
            methods=self.methods,
            traffic=self._traffic(main, joint.branches[0].steps, tokens) if machines > 1 else None,
            assumptions=self._assumptions,
            memory=self._memory,
        )

    def _traffic(self, main: MethodCost, joint_steps: int, tokens: float) -> Traffic:
        return traffic(
            self.model,
            Exchange(
                machines=len(main.branches),
                rounds=main.rounds,
                tokens=tokens,
                sketches=self._sketches(main),
                through_store=self.config.launch.store is not None,
            ),
            joint_steps,
        )

    @property
    def _memory(self) -> BranchMemory:
        return branch_memory(self.model, self.config.train, self.shards, self.device)

    @cached_property
    def methods(self) -> list[MethodCost]:
        """The main method, the baselines, and joint training, which is planned for comparison if it is not run."""
        split = self.config.split
        usual = self.config.train.rounds
        wanted = [(MAIN_METHOD, split.splitter, split.axes, True, usual)]
        wanted += [
            (name, item.splitter, item.axes or split.axes, True, item.rounds or usual)
            for name, item in self.config.baselines.items()
            if item.splitter is not None
        ]
        if not any(find_splitter(splitter).one_group for _, splitter, *_ in wanted):
            wanted.append((JOINT, UNSPLIT, 0, False, 1))
        methods = []
        for name, splitter, axes, configured, rounds in wanted:
            count = min(2**_AUTO, len(self.mixture.datasets)) if axes == "auto" else 2**axes
            groups = group_tokens(self.mixture, splitter, count, self.partitions.get(name))
            branches = [self._branch(group * self.config.train.epochs) for group in groups]
            rounds = 1 if find_splitter(splitter).one_group else rounds
            methods.append(
                MethodCost(name=name, splitter=splitter, configured=configured, branches=branches, rounds=rounds)
            )
        return methods

    def _branch(self, count: Count) -> BranchCost:
        flops = (TRAIN if self.config.train.lora is None else TRAIN_LORA) * self.model.parameters * count[0]
        return BranchCost(
            tokens=round(count[0]),
            supervised_tokens=round(count[1]),
            steps=max(1, math.ceil(count[0] / self.config.train.batch_tokens)),
            flops=flops,
            hours=self._hours(flops),
        )

    @property
    def _gradients(self) -> StageCost:
        """Gradients are folded layer by layer and freed at once. Disk: two half-sets of fp32 numbers a dataset, and the
        same hashed, for what needs the halves."""
        calibration, several = self.config.calibration, len(self.mixture.datasets) > 1
        width = self.model.hidden.get("hidden_size", 0)
        buckets = max(math.ceil(width / calibration.fold), min(LEAST, width))
        fold = width / buckets if width else calibration.fold
        factor = {"fold": fold, "flat": calibration.stride, "full": 1}[calibration.sketch]
        numbers = calibration.hashed or math.ceil(self.model.parameters / factor)
        numbers += HASHED if numbers > 4 * HASHED else 0
        count = _total(_some(item.train, calibration.examples) for item in self.mixture.datasets) * several
        memory = FP32 * self.model.parameters + activations(self.model, calibration.batch_tokens)
        return self._stage("gradients", count, TRAIN, memory, 2 * FP32 * len(self.mixture.datasets) * numbers * several)

    @property
    def _training(self) -> StageCost:
        """Memory: weights, gradients, AdamW, and the activations of one micro-batch. Disk: the branches' fp32
        checkpoints, of every round, and the states of those in training or between two rounds."""
        model = self.model
        branches = [branch for method in self._configured for branch in method.branches]
        state = STATES_KEPT * (ADAMW - FP32) * model.trainable
        return StageCost(
            stage="train",
            tokens=sum(branch.tokens for branch in branches),
            supervised_tokens=sum(branch.supervised_tokens for branch in branches),
            flops=sum(branch.flops for branch in branches),
            hours=total_hours(method.hours for method in self._configured),
            memory_bytes=self._memory.states + self._memory.activations,
            disk_bytes=sum(len(method.branches) * method.rounds for method in self._configured)
            * FP32
            * model.parameters
            + sum(len(method.branches) * self._sketches(method) for method in self._configured)
            + min(self.at_once, len(branches)) * state
            + sum(len(method.branches) for method in self._configured if method.rounds > 1) * self._state,
        )

    @property
    def _state(self) -> int:
        """Bytes of the training state that a branch keeps from one round to the next."""
        return training_state(self.model)

    @property
    def _sketch(self) -> int:
        """Bytes of a branch's sketch of its inputs, at most; 0 if no merge rule weighs by them."""
        wanted = self.config.measured_examples is not None
        return round(SKETCH_SHARE * FP32 * self.model.parameters) if wanted else 0

    def _sketches(self, method: MethodCost) -> int:
        """Bytes of the sketches of one of the method's branches. If only further merges weigh by them, the rounds
        before the last leave none."""
        if len(method.branches) < 2:
            return 0
        return self._sketch * (method.rounds if self.config.merge.measured_examples is not None else 1)

    @property
    def _merging(self) -> StageCost:
        """Bound by the disk: every merge reads its checkpoints once, every merged model is written once. Rounds before
        the last merge once more each, and an outer momentum is read and written with them."""
        branches = {method.name: len(method.branches) for method in self._configured}
        inputs = sum(branches[self.config.trained_by(name)] for name in (MAIN_METHOD, *self.config.others))
        inputs += sum(len(method.branches) * (method.rounds - 1) for method in self._configured)
        read = FP32 * self.model.parameters * inputs
        outer = self.config.train.outer_step
        momentum = FP32 if outer is not None and outer.momentum else 0
        written = (self._merged_models + self._between) * _MERGED[self.config.merge.dtype] * self.model.parameters
        written += self._between * momentum * self.model.parameters
        read += self._between * momentum * self.model.parameters
        return StageCost(
            stage="merge",
            tokens=0,
            supervised_tokens=0,
            flops=2.0 * self.model.parameters * inputs,
            hours=(read + written) / DISK_SPEED / 3600,
            memory_bytes=None,
            disk_bytes=written,
        )

    @property
    def _evaluation(self) -> StageCost:
        """θ0, every merged model, and the losses of the main method's branches. Memory: fp32 weights and one batch's
        logits."""
        config, datasets = self.config.evaluate, [*self.mixture.datasets, *self.mixture.unseen]
        whole, branches = 1 + self._merged_models + self._between, len(self.methods[0].branches)
        losses_only = branches if config.branches and branches > 1 else 0
        drift = config.drift * config.max_new_tokens
        scoring = _total(_some(item.held_out, config.held_out) for item in datasets) + drift
        answering = 0.0  # the prompts, and every answer at its longest
        for item in self.mixture.answered:
            part = _some(item.held_out, config.generate)
            answers = min(config.generate, item.held_out.examples)
            answering += part[0] - part[1] + answers * config.max_new_tokens
        count = scoring * (whole + losses_only) + np.array([answering * whole, 0.0])
        memory = FP32 * (self.model.parameters + config.batch_tokens * self.model.hidden.get("vocab_size", 0))
        return self._stage("evaluate", count, FORWARD, memory, 0)

    def _stage(self, name: str, count: Count, flops: int, memory: int, disk: int) -> StageCost:
        """`flops` are those of a parameter and token."""
        total = flops * self.model.parameters * float(count[0])
        return StageCost(
            stage=name,
            tokens=round(count[0]),
            supervised_tokens=round(count[1]),
            flops=total,
            hours=self._hours(total),
            memory_bytes=memory,
            disk_bytes=disk,
        )

    @property
    def _configured(self) -> list[MethodCost]:
        return [method for method in self.methods if method.configured]

    @property
    def _between(self) -> int:
        """Merges of rounds before the last."""
        return sum(method.rounds - 1 for method in self._configured)

    @property
    def _merged_models(self) -> int:
        return len(self.config.merge.scales) + sum(len(item.scales) for item in self.config.others.values())

    def _hours(self, flops: float) -> float | None:
        speed = self.tokens_per_second
        return None if speed is None else float(flops / (TRAIN * self.model.parameters * speed) / 3600)

    @property
    def _assumptions(self) -> list[str]:
        """The sentences that belong to this plan."""
        train, speed = self.config.train, self.tokens_per_second
        lora = train.lora is not None
        flops = "4·N, since the frozen weights get no gradient (LoRA)" if lora else "6·N"
        known = f"That speed is {speed:,.0f} tokens a second." if speed else "No speed was given, so there are none."
        states = "16 bytes a parameter (fp32 weight, gradient and AdamW's two moments)"
        if lora:
            states = (
                "the frozen weights in their own type, and 16 bytes an adapter parameter (fp32 weight, gradient, AdamW)"
            )
        passes = f", plus the activations of {train.micro_batch_tokens:,} tokens without recomputation."
        if not {"hidden_size", "num_hidden_layers"} <= set(self.model.hidden):
            passes = "; activations are not counted, because the model's shape is not known."
        lines = [
            f"FLOPs: with N = {self.model.parameters:,} parameters, a training token costs {flops}, a token of the "
            "gradient stage at most 6·N, and a forward token 2·N. Attention over long contexts and the second forward "
            "pass of gradient checkpointing come on top.",
            f"Hours are device hours: FLOPs at the speed of one device's full training step. {known} On a CPU, "
            "prefixes that prompts share run once a batch, which is not counted.",
            "On one device a branch, a method takes as long as its longest branch. All devices are taken to be equal.",
            f"{self._exchanged} Joint training on K data-parallel workers does a ring all-reduce "
            "of fp32 gradients in every step: 2·(K − 1)/K·4 bytes a trained parameter and worker. Its time is not "
            "counted.",
            f"Memory in training: {states}{passes}",
            "Disk: a finished branch is an fp32 checkpoint; one in training keeps two states of weights and moments.",
            "Merging reads and writes 500 MB a second, the speed of an ordinary SSD.",
            "Evaluation counts every answer at its longest, and decoding at the speed of scoring. Most devices decode "
            "several times more slowly.",
        ]
        if MAIN_METHOD not in self.partitions and not find_splitter(self.config.split.splitter).whole_mixture:
            lines.append(
                "The split is not made yet. Groups are taken to be as equal in tokens as the largest dataset allows."
            )
        if self._sketch:
            lines.append(
                "For a merge rule every branch measures, after its training, its layers' "
                f"inputs on {self.config.measured_examples} of its examples, and leaves a sketch of at most "
                f"{data_size(self._sketch)} beside its checkpoint, which a store moves with it. The time of a few "
                "forward passes over these examples is not counted."
            )
        if self.config.split.axes == "auto":
            lines.append("`axes: auto` is taken to find two axes, which make four groups.")
        return lines

    @property
    def _exchanged(self) -> str:
        """What the main method's branches send, in words."""
        main = self.methods[0]
        if main.rounds == 1:
            return "Branches send nothing while they train."
        text = (
            f"Branches send nothing within a round. After each of {main.rounds} rounds every branch sends its "
            "checkpoint and, before the next, receives the merge. A round takes as long as its longest branch."
        )
        if self.config.launch.store is not None:
            text += f" The store also moves each branch's training state, {data_size(self._state)}, to the next round."
        return text


@dataclass(frozen=True)
class Exchange:
    """What K branches on K machines exchange.

    Attributes:
        tokens: of the training data, once.
        sketches: bytes that a branch sends beside its checkpoints, over all rounds.
        through_store: no machine keeps what it needs for the next round.
    """

    machines: int
    rounds: int = 1
    tokens: float = 0.0
    sketches: int = 0
    through_store: bool = False


def traffic(model: ModelFacts, exchange: Exchange, joint_steps: int) -> Traffic:
    """K branches on K machines, against joint training on K data-parallel workers."""
    machines, rounds = exchange.machines, exchange.rounds
    checkpoint = FP32 * model.parameters
    back = machines * rounds * checkpoint
    return Traffic(
        machines=machines,
        theta0_out=machines * model.bytes_per_parameter * model.parameters,
        data_out=round(TOKEN_BYTES * exchange.tokens),
        checkpoints_back=back,
        merges_out=moved(machines, rounds, checkpoint) - back,
        states_out=carried(machines, rounds, training_state(model)) if exchange.through_store else 0,
        sketches_back=machines * exchange.sketches,
        joint_steps=joint_steps,
        joint_step_per_worker=data_parallel(machines, 1, FP32 * model.trainable) // machines,
        joint_total=data_parallel(machines, joint_steps, FP32 * model.trainable),
    )


def training_state(model: ModelFacts) -> int:
    """Bytes of one training checkpoint: fp32 weights, and AdamW's two moments of those that are trained."""
    return FP32 * (model.parameters + 2 * model.trainable)


def group_tokens(mixture: Mixture, splitter: str, groups: int, partition: Partition | None) -> list[Count]:
    """Tokens an epoch of each group: those of the partition, or the balanced ones that a splitter aims at.

    No balance can make the largest group smaller than the largest dataset.
    """
    each = {item.name: _some(item.train, item.train.examples) * item.weight for item in mixture.datasets}
    if partition is not None:
        return [_total(each[name] for name in group.datasets if name in each) for group in partition.groups]
    everything = _total(each.values())
    found = find_splitter(splitter)
    if found.one_group or groups == 1:
        return [everything]
    if found.whole_mixture:
        return [everything] * groups
    heaviest = max(each.values(), key=lambda count: float(count[1]))
    if heaviest[1] <= everything[1] / groups:
        return [everything / groups] * groups
    return [heaviest, *[(everything - heaviest) / (groups - 1)] * (groups - 1)]


def _some(counts: SplitCounts, examples: int) -> Count:
    """`examples` of a dataset's part, or all that it has, at its mean length."""
    share = min(examples, counts.examples) / counts.examples if counts.examples else 0.0
    return np.array([counts.tokens, counts.supervised_tokens]) * share


def _total(counts: Iterable[Count]) -> Count:
    return sum(counts, np.zeros(2))
