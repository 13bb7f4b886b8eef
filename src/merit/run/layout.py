"""Every path of a run directory. Nothing else joins path components of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from merit.base.files import safe_name

MAIN_METHOD = "merit"
JOB = "job.json"  # what the executor last did with a branch
GATE = "gate"  # the method whose branches are pilots


@dataclass(frozen=True)
class MethodDir:
    """The part of a run that one method owns: the run itself for the main method, a folder below for a baseline."""

    root: Path

    @property
    def partition(self) -> Path:
        return self.root / "split" / "partition.json"

    @property
    def kept_partition(self) -> Path:
        """The groups that stay when a dataset is added or removed."""
        return self.root / "split" / "kept" / "partition.json"

    @property
    def kept_axes(self) -> Path:
        """The axes of the first split, on which the groups were cut."""
        return self.root / "split" / "kept" / "axes.json"

    @property
    def branches(self) -> Path:
        return self.root / "branches"

    def branch(self, k: int) -> BranchDir:
        return BranchDir(self.branches / f"{k:02d}")

    @property
    def merge_record(self) -> Path:
        return self.root / "merge.json"

    def merged(self, scale: float = 1.0) -> Path:
        """The merge, or the point β = `scale` on its ray."""
        return self.root / ("merged" if scale == 1.0 else f"merged@{scale:g}")


@dataclass(frozen=True)
class BranchDir:
    """One branch's folder."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def checkpoint(self) -> Path:
        """The trained weights, in Hugging Face layout."""
        return self.root / "checkpoint"

    @property
    def incoming(self) -> Path:
        """A checkpoint of another trainer, while merit checks it."""
        return self.root / "incoming"

    @property
    def training_state(self) -> Path:
        """TRL's own checkpoints while the branch trains; removed when it is done."""
        return self.root / "training"

    @property
    def log(self) -> Path:
        """One JSON object per step: step, epoch, loss, learning_rate, grad_norm, supervised_tokens, seconds."""
        return self.root / "log.jsonl"

    @property
    def progress(self) -> Path:
        """A small JSON file that the job rewrites: {"done", "total", "note"}."""
        return self.root / "progress.json"

    @property
    def tensorboard(self) -> Path:
        """Event files, where `train.trl.report_to` names tensorboard."""
        return self.root / "tensorboard"

    @property
    def output(self) -> Path:
        """What the job printed."""
        return self.root / "output.txt"

    def snapshot(self, index: int) -> Path:
        """A sketch of the weights during training, 0 at the start, if `train.snapshots` asks for it."""
        return self.root / "trajectory" / f"{index:03d}.npy"

    @property
    def job(self) -> Path:
        """What the executor last did with the branch."""
        return self.root / JOB

    @property
    def done(self) -> Path:
        """The BranchResult. It is written last, so the branch is whole if it exists."""
        return self.root / "DONE"


@dataclass(frozen=True)
class RunDir:
    """A run directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def mixture(self) -> Path:
        return self.root / "mixture.json"

    @property
    def data_folder(self) -> Path:
        return self.root / "data"

    def data(self, name: str) -> Path:
        """The encoded examples of dataset `name`, an Arrow file."""
        return self.data_folder / f"{safe_name(name)}.arrow"

    @property
    def gradients(self) -> Path:
        return self.root / "gradients"

    @property
    def similarity(self) -> Path:
        return self.root / "conflict" / "similarity.npy"

    @property
    def conflict(self) -> Path:
        return self.root / "conflict" / "conflict.json"

    @property
    def axes(self) -> Path:
        return self.root / "conflict" / "axes.json"

    @property
    def explanation(self) -> Path:
        """Which pairs of datasets conflict, and in which layers."""
        return self.root / "conflict" / "explanation.json"

    @property
    def axes_evidence(self) -> Path:
        """What each further axis would capture."""
        return self.root / "split" / "evidence.json"

    @property
    def baselines(self) -> Path:
        return self.root / "baselines"

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

    @property
    def gate_record(self) -> Path:
        """The figures and the verdict of the pilot."""
        return self.root / GATE / "gate.json"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluation"

    def evaluation(self, model: str) -> Path:
        """The results of one evaluated model; `model` is a label such as `base`, `merit`, `joint@0.5`."""
        return self.evaluations / f"{safe_name(model)}.json"

    @property
    def table(self) -> Path:
        return self.evaluations / "table.json"

    @property
    def drift(self) -> Path:
        """θ0's own answers to the general prompts, on which drift is measured."""
        return self.evaluations / "drift-set.json"

    @property
    def diagnostics(self) -> Path:
        return self.root / "diagnostics"

    def diagnostic(self, check: str) -> Path:
        """The result of one check, such as `lmc` or `displacement`."""
        return self.diagnostics / f"{safe_name(check)}.json"

    def diagnostic_progress(self, check: str) -> Path:
        """What an unfinished check has measured so far."""
        return self.diagnostics / "unfinished" / f"{safe_name(check)}.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def card(self) -> Path:
        return self.root / "README.md"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def state(self) -> Path:
        """Stage records, by which a rerun skips finished stages, and the lock."""
        return self.root / ".merit"

    def stage(self, name: str) -> Path:
        return self.state / f"{safe_name(name)}.json"

    @property
    def written(self) -> list[Path]:
        """What a run writes at its top level, and may replace."""
        main = self.method()
        folders = [self.data_folder, self.gradients, self.conflict.parent, self.baselines, self.evaluations]
        folders += [self.diagnostics, self.prepare.root, self.gate_record.parent, self.handover("x", "x", 0).parents[1]]
        files = [self.config, self.mixture, self.report, self.card, self.events, main.merge_record]
        return [*files, *folders, main.partition.parent, main.branches, main.merged()]

    @property
    def engine(self) -> Path:
        """Files of the engine that runs the jobs."""
        return self.state / "engine"

    @property
    def cancel(self) -> Path:
        """The file by which `merit cancel` stops the process that watches the jobs."""
        return self.state / "cancel"

    @property
    def lock(self) -> Path:
        return self.state / "lock"


def relative(path: Path, root: Path) -> str:
    """`path` as it is written into the run's files: relative to `root`, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()
