"""Every path of a run directory. Nothing else joins path components of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base.files import safe_name

MAIN_METHOD = "merit"
JOB = "job.json"  # what the executor last did with a branch
GATE = "gate"  # the method whose branches are pilots


class _At:
    """A fixed path below the `root` of the folder that has it, or below another of its paths."""

    def __init__(self, *parts: str, below: str = "root") -> None:
        self._parts, self._below = parts, below

    def __get__(self, folder: Any, _: type) -> Path:
        top: Path = getattr(folder, self._below)
        return top.joinpath(*self._parts)


@dataclass(frozen=True)
class MethodDir:
    """The part of a run that one method owns: the run itself for the main method, a folder below for a baseline.

    Attributes:
        trained: the folder of the method whose branches it merges, if it has none of its own.
        whole: of a round before the last, the method's own folder: it has the groups.
    """

    root: Path
    trained: Path | None = None
    whole: Path | None = None
    kept_partition = _At("split", "kept", "partition.json")  # the groups that stay when a dataset is added or removed
    kept_axes = _At("split", "kept", "axes.json")  # the axes of the first split, on which the groups were cut
    branches = _At("branches", below="source")
    rounds = _At("rounds", below="source")
    merge_record = _At("merge.json")
    momentum = _At("momentum")  # of a round before the last: the outer optimizer's, if it has one

    @property
    def source(self) -> Path:
        """Where its branches are."""
        return self.trained or self.root

    @property
    def partition(self) -> Path:
        return (self.whole or self.source) / "split" / "partition.json"

    def round(self, number: int) -> MethodDir:
        """A round before the last, from 1."""
        return MethodDir(self.rounds / f"{number:02d}", whole=self.source)

    def branch(self, k: int) -> BranchDir:
        return BranchDir(self.branches / f"{k:02d}")

    def planned(self, k: int) -> list[BranchDir]:
        """Branch `k` in every round that is planned so far, the last round at the end."""
        rounds = [self.round(int(folder.name)) for folder in sorted(self.rounds.glob("[0-9][0-9]"))]
        found = [method.branch(k) for method in (*rounds, self)]
        return [branch for branch in found if branch.spec.is_file()]

    def planned_branches(self) -> dict[int, BranchDir]:
        """The branches that some round plans so far, each in its last such round."""
        rounds = [self.round(int(folder.name)) for folder in sorted(self.rounds.glob("[0-9][0-9]"))]
        specs = [spec for method in (*rounds, self) for spec in method.branches.glob("*/spec.json")]
        return {int(spec.parent.name): BranchDir(spec.parent) for spec in specs if spec.parent.name.isdecimal()}

    def merged(self, scale: float = 1.0) -> Path:
        """The merge, or the point β = `scale` on its ray."""
        return self.root / ("merged" if scale == 1.0 else f"merged@{scale:g}")


@dataclass(frozen=True)
class BranchDir:
    """One branch's folder."""

    root: Path
    spec = _At("spec.json")
    checkpoint = _At("checkpoint")  # the trained weights, in Hugging Face layout
    measure = _At("measure.json")  # what the job measures after training; without it, nothing
    measured = _At("MEASURED")  # the marker of a job that only measures
    trained = _At("TRAINED")  # the BranchResult while the job measures; then it is DONE
    incoming = _At("incoming")  # a checkpoint of another trainer, while merit checks it
    training_state = _At("training")  # TRL's own checkpoints while the branch trains; removed when it is done
    # One JSON object per step: step, epoch, loss, learning_rate, grad_norm, supervised_tokens, seconds.
    log = _At("log.jsonl")
    progress = _At("progress.json")  # a small JSON file that the job rewrites: {"done", "total", "note"}
    tensorboard = _At("tensorboard")  # event files, where `train.trl.report_to` names tensorboard
    output = _At("output.txt")  # what the job printed
    job = _At(JOB)
    done = _At("DONE")  # the BranchResult. It is written last, so the branch is whole if it exists.

    def snapshot(self, index: int) -> Path:
        """A sketch of the weights during training, 0 at the start, if `train.snapshots` asks for it."""
        return self.root / "trajectory" / f"{index:03d}.npy"


@dataclass(frozen=True)
class RunDir:
    """A run directory.

    Attributes:
        round: whose diagnostics are meant; None: those of the whole training.
    """

    root: Path
    round: int | None = None
    config = _At("config.yaml")
    mixture = _At("mixture.json")
    data_folder = _At("data")
    gradients = _At("gradients")
    similarity = _At("conflict", "similarity.npy")
    conflict = _At("conflict", "conflict.json")
    axes = _At("conflict", "axes.json")
    explanation = _At("conflict", "explanation.json")  # which pairs of datasets conflict, and in which layers
    axes_evidence = _At("split", "evidence.json")  # what each further axis would capture
    baselines = _At("baselines")
    gate_record = _At(GATE, "gate.json")  # the figures and the verdict of the pilot
    evaluations = _At("evaluation")
    table = _At("evaluation", "table.json")
    drift = _At("evaluation", "drift-set.json")  # θ0's own answers to the general prompts, on which drift is measured
    pieces = _At("evaluation", "jobs", "pieces")  # scores of models that are not measured in full yet
    diagnostics = _At("diagnostics")
    tracking = _At("tracking")  # what trackers keep on this disk of the run `merge`
    report = _At("report.html")
    card = _At("README.md")
    events = _At("events.jsonl")
    state = _At(".merit")  # stage records, by which a rerun skips finished stages, and the lock
    engine = _At(".merit", "engine")  # files of the engine that runs the jobs
    cancel = _At(".merit", "cancel")  # the file by which `merit cancel` stops the process that watches the jobs
    lock = _At(".merit", "lock")

    def data(self, name: str) -> Path:
        """The encoded examples of dataset `name`, an Arrow file."""
        return self.data_folder / f"{safe_name(name)}.arrow"

    def skipped_rows(self, name: str) -> Path:
        """The rows of dataset `name` that `on_bad_row: skip` has left out, one JSON object a line."""
        return self.data_folder / f"{safe_name(name)}.skipped.jsonl"

    def method(self, name: str = MAIN_METHOD) -> MethodDir:
        if name == GATE:
            return MethodDir(self.root / GATE)
        return MethodDir(self.root if name == MAIN_METHOD else self.baselines / safe_name(name))

    def handover(self, trainer: str, method: str, k: int) -> Path:
        """The folder with everything that another trainer needs for a branch."""
        return self.root / "handover" / safe_name(trainer) / f"{safe_name(method)}-{k:02d}"

    @property
    def prepare(self) -> RunDir:
        """Basin preparation: a small run of its own, whose branches are the rounds, one after another."""
        return RunDir(self.root / "prepare")

    def evaluation(self, model: str) -> Path:
        """The results of one evaluated model; `model` is a label such as `base`, `merit`, `joint@0.5`."""
        return self.evaluations / f"{safe_name(model)}.json"

    def piece(self, model: str, piece: str) -> Path:
        """A part of the results of a model that is being evaluated."""
        return self.pieces / f"{safe_name(model)}.{piece}.json"

    def diagnostic(self, check: str) -> Path:
        """The result of one check, such as `lmc` or `displacement`."""
        return self._diagnosed / f"{safe_name(check)}.json"

    def diagnostic_progress(self, check: str) -> Path:
        """What an unfinished check has measured so far."""
        return self._diagnosed / "unfinished" / f"{safe_name(check)}.json"

    @property
    def _diagnosed(self) -> Path:
        return self.diagnostics if self.round is None else self.diagnostics / f"round-{self.round:02d}"

    def stage(self, name: str) -> Path:
        return self.state / f"{safe_name(name)}.json"

    @property
    def written(self) -> list[Path]:
        """What a run writes at its top level, and may replace."""
        main = self.method()
        folders = [self.data_folder, self.gradients, self.conflict.parent, self.baselines, self.evaluations]
        folders += [
            self.diagnostics,
            self.tracking,
            self.prepare.root,
            self.gate_record.parent,
            self.handover("x", "x", 0).parents[1],
        ]
        files = [self.config, self.mixture, self.report, self.card, self.events, main.merge_record]
        return [*files, *folders, main.partition.parent, main.branches, main.rounds, main.merged()]


def relative(path: Path, root: Path) -> str:
    """`path` as it is written into the run's files: relative to `root`, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()
