"""How a run shows in trackers: one group, and in it a run for each branch (or round of it) and for the merge."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from merit.base.record import fingerprint
from merit.run.layout import BranchDir, RunDir
from merit.train.spec import BranchSpec


@dataclass(frozen=True)
class Tracked:
    """One run in the trackers.

    Attributes:
        group: the group in Weights & Biases, the experiment in MLflow.
        kind: branch or merge.
        ident: by which Weights & Biases continues a run that was interrupted.
        home: where Weights & Biases keeps its files.
        events: where TensorBoard's event files are.
        facts: MLflow's tags.
    """

    group: str
    name: str
    kind: str
    ident: str
    home: Path
    events: Path
    facts: Mapping[str, str]

    @contextlib.contextmanager
    def variables(self) -> Iterator[None]:
        """Sets the variables that trackers read, unless the user has, and restores them for the next run."""
        facts = {"group": self.group, "kind": self.kind, **self.facts}
        values = {
            "WANDB_RUN_GROUP": self.group,
            "WANDB_JOB_TYPE": self.kind,
            "WANDB_RUN_ID": self.ident,
            "WANDB_RESUME": "allow",
            "WANDB_DIR": str(self.home),
            "MLFLOW_EXPERIMENT_NAME": self.group,
            "MLFLOW_TAGS": json.dumps({f"merit.{key}": value for key, value in facts.items()}),
            "TENSORBOARD_LOGGING_DIR": str(self.events),
        }
        ours = {key: value for key, value in values.items() if key not in os.environ}
        os.environ.update(ours)
        try:
            yield
        finally:
            for key in ours:
                os.environ.pop(key, None)
            if "wandb" in sys.modules:
                # transformers leaves the run open, and wandb reads the environment once: the next branch would
                # continue it.
                sys.modules["wandb"].finish()
                sys.modules["wandb"].teardown()


def tracked_branch(run: RunDir, branch: BranchDir, spec: BranchSpec) -> Tracked:
    """The run of a branch, or of one of its rounds."""
    group, name = group_name(run), branch_name(run, branch, spec)
    return Tracked(
        group=group,
        name=name,
        kind="branch",
        ident=fingerprint(group, name, spec),
        home=branch.root,
        events=branch.tensorboard,
        facts={"method": spec.method, "branch": str(spec.branch), "round": str(spec.round)},
    )


def group_name(run: RunDir) -> str:
    """What holds the runs together: the name of the run directory. Preparation belongs to the run that it is in."""
    root = run.root.resolve()
    outer = RunDir(root.parent)
    is_preparation = outer.prepare.root == root and outer.config.is_file()
    return outer.root.name if is_preparation else root.name


def branch_name(run: RunDir, branch: BranchDir, spec: BranchSpec) -> str:
    """The branch's name in its group. A study trains a method many times, so its cells add their folder's name."""
    name = f"{spec.method}-{spec.branch:02d}"
    home = branch.root.parents[1 if spec.is_last else 3]  # the method's folder: METHOD/[rounds/NN/]branches/KK
    if home != run.method(spec.method).root:
        name = f"{name}-{home.name}"
    return f"{name}-round-{spec.round}" if spec.train.rounds > 1 else name
