"""Trackers that `train.trl.report_to` names: one run a branch, grouped by the run directory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from merit.branches.spec import BranchSpec
from merit.run.fingerprint import fingerprint
from merit.run.layout import BranchDir, RunDir


def group_name(run: RunDir) -> str:
    """What the branches of a run have in common: a project, a group or an experiment of this name."""
    return run.root.resolve().name


def run_name(run: RunDir, branch: BranchDir, spec: BranchSpec) -> str:
    """The branch's name in its group. A study's cells are told apart by their folder: its methods come many times."""
    name = f"{spec.method}-{spec.branch:02d}"
    return name if branch == run.method(spec.method).branch(spec.branch) else f"{name}-{branch.root.name}"


@contextlib.contextmanager
def tracked(run: RunDir, branch: BranchDir, spec: BranchSpec) -> Iterator[None]:
    """Sets what trackers read from the environment, unless the user has. More branches may follow in this process.

    A branch that resumes goes on in the same run of Weights & Biases: its id is made from what the branch is.
    """
    group = group_name(run)
    values = {
        "WANDB_RUN_GROUP": group,
        "WANDB_RUN_ID": fingerprint(group, run_name(run, branch, spec), spec),
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(branch.root),
        "MLFLOW_EXPERIMENT_NAME": group,
        "TENSORBOARD_LOGGING_DIR": str(branch.tensorboard),
    }
    ours = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)
        if "wandb" in sys.modules:
            # transformers leaves its run open, and wandb reads the environment once: the next branch would go on in it.
            sys.modules["wandb"].finish()
            sys.modules["wandb"].teardown()
