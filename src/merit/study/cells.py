"""The trainings of a study, each named by what it depends on: a cell is one branch, or all branches in rounds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base import extensions
from merit.base.files import HALF_WRITTEN
from merit.base.record import fingerprint
from merit.config.run import BaselineConfig
from merit.config.sections import RuleConfig
from merit.config.study import MethodConfig
from merit.context import Method, RunContext
from merit.merge.rounds import run_rounds
from merit.merge.step import MethodMerge, merge_methods
from merit.run.layout import BranchDir
from merit.split.partition import Partition
from merit.train.carry import end_of_round
from merit.train.checkpoints import newest_checkpoint
from merit.train.spec import BranchSpec, damaged_files
from merit.train.step import prepare_branch


def cell_mark(spec: BranchSpec) -> str:
    """The cell's name. Equal specs are one cell, whichever methods ask for it."""
    return fingerprint(spec)


def cell_marks(method: MethodConfig, specs: Sequence[BranchSpec]) -> list[str]:
    """The cells that a method needs: one a branch, or one for all of them in rounds, which depend on the merge."""
    if method.rounds == 1:
        return [cell_mark(spec) for spec in specs]
    return [fingerprint("rounds", specs, method.merge, method.ridge, *extensions.marks("rules", method.merge))]


def without_place(specs: Sequence[BranchSpec]) -> list[BranchSpec]:
    """The specs without the folder in which θ0 lies: `model_fingerprint` says what θ0 is, and scores are the same on
    every machine. A name that is no folder's stays."""
    return [
        spec.model_copy(update={"model": spec.model.model_copy(update={"path": "", "chat_template": None})})
        if Path(spec.model.path).is_absolute()
        else spec
        for spec in specs
    ]


@dataclass(frozen=True)
class Planned:
    """A branch of one round that is not trained yet. Its spec is written."""

    method: Method  # of that round
    dir: BranchDir
    spec: BranchSpec


@dataclass(frozen=True)
class RoundsCell:
    """The training of a method in rounds. It lies in the study's run directory as a method of a run does, and the
    run's own steps train and merge it.

    Attributes:
        context: the study as a run (`Study.cell_run`).
        method: its last round.
        partition: its groups.
        first: specs of the first round, one a group.
    """

    context: RunContext
    method: Method
    partition: Partition
    first: Sequence[BranchSpec]

    @classmethod
    def of(
        cls, context: RunContext, method: MethodConfig, partition: Partition, first: Sequence[BranchSpec]
    ) -> RoundsCell:
        """The cell of a study's method."""
        (mark,) = cell_marks(method, first)
        config = BaselineConfig(
            splitter=method.splitter, merge=RuleConfig(rule=method.merge, ridge=method.ridge), rounds=method.rounds
        )
        last = Method(mark, context.run.method(mark), config, rounds=method.rounds, round=method.rounds)
        return cls(context, last, partition, first)

    def train(self, train: Callable[[Sequence[Planned]], None]) -> list[BranchDir]:
        """Trains and merges what is missing of all rounds; returns the branches of the last one.

        Args:
            train: trains these branches: in this process, or as jobs.

        Raises:
            InputError, StageError: as training and merging.
        """

        def one_round(methods: Sequence[Method]) -> int:
            planned = [
                Planned(method, method.dir.branch(spec.branch), spec)
                for method in methods
                for spec in self._specs(method)
            ]
            todo = [item for item in planned if prepare_branch(item.dir, item.spec)]
            train(todo)
            return len(todo)

        if self._cannot_go_on():
            root = self.method.dir.root
            # Whole or not there, if this is killed.
            gone = root.rename(root.with_name(f"{root.name}.{os.getpid()}{HALF_WRITTEN}"))
            shutil.rmtree(gone)
        self.partition.save(self.method.dir.partition)
        run_rounds(self.context, [self.method], one_round)
        one_round([self.method])
        merge_methods(self.context, [self.method])
        return [self.method.dir.branch(spec.branch) for spec in self.first]

    @property
    def merge(self) -> MethodMerge:
        """What the last merge was made of."""
        return MethodMerge.load(self.method.dir.merge_record)

    def _specs(self, method: Method) -> list[BranchSpec]:
        """Of one round, which starts from the merge of the round before."""
        changes = {
            "model": self.context.start_config(method),
            "model_fingerprint": self.context.start(method).fingerprint,
            "round": method.round,
        }
        return [spec.model_copy(update=changes) for spec in self.first]

    def _cannot_go_on(self) -> bool:
        """Whether a file is damaged or removed, or the training state is gone from which a round would go on. A
        finished round removes the state of the one before, so that only the first round can be trained again. Where
        there is a store, it keeps that state."""
        here = self.context.config.launch.store is None
        for spec in self.first:
            branches = [method.dir.branch(spec.branch) for method in (*self.method.before, self.method)]
            done = [branch.done.is_file() for branch in branches]
            if any(damaged_files(branch) for branch, there in zip(branches, done, strict=True) if there):
                return True
            reached = sum(done)
            if any(done[reached:]):
                return True
            if not here or not 0 < reached < len(branches) or newest_checkpoint(branches[reached]) is not None:
                continue
            if end_of_round(branches[reached - 1], spec.model_copy(update={"round": reached})) is None:
                return True
        return False
