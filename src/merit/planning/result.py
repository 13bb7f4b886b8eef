"""What planning knows of a model, and what it says of a run."""

from __future__ import annotations

from merit.run.record import Record
from merit.split.splitter import find_splitter


class ModelFacts(Record):
    """θ0 as far as its cost goes, read from its folder without loading it.

    `hidden` holds what is known of its shape: `hidden_size`, `num_hidden_layers`, `vocab_size`. What is missing there
    is left out of the memory estimate.
    """

    parameters: int
    trainable: int  # all of them in full fine-tuning, the adapters' with LoRA
    bytes_per_parameter: int  # as stored on disk
    hidden: dict[str, int]


class BranchCost(Record):
    """Training one branch."""

    tokens: int  # over all epochs, prompts included: what compute goes by
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

    @property
    def is_joint(self) -> bool:
        """One branch on everything: joint training."""
        return find_splitter(self.splitter).one_group

    @property
    def hours(self) -> float | None:
        """Device hours of all branches."""
        hours = [branch.hours for branch in self.branches]
        return None if None in hours else sum(hour or 0.0 for hour in hours)

    @property
    def longest_hours(self) -> float | None:
        """Hours when every branch has a device: those of the longest."""
        hours = [branch.hours for branch in self.branches]
        return None if None in hours else max(hour or 0.0 for hour in hours)


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
    checkpoints_back: int
    joint_steps: int
    joint_step_per_worker: int  # 2 (K − 1) / K of the gradients' bytes: a ring all-reduce
    joint_total: int  # all workers, all steps

    @property
    def total(self) -> int:
        """All that the branches move."""
        return self.theta0_out + self.data_out + self.checkpoints_back


class Plan(Record):
    """What a run will cost. `assumptions` are sentences: every figure here rests on them."""

    model: ModelFacts
    tokens_per_second: float | None
    stages: list[StageCost]  # gradients, train (all configured methods), merge, evaluate
    methods: list[MethodCost]  # the main one first, joint training always among them
    traffic: Traffic | None  # None with a single branch
    assumptions: list[str]

    @property
    def main(self) -> MethodCost:
        return self.methods[0]

    @property
    def joint(self) -> MethodCost:
        return next(method for method in self.methods if method.is_joint)
