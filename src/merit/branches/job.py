"""`merit train RUN --branch k`, seen from inside the job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from merit.branches.spec import BranchResult
from merit.errors import InputError
from merit.executors.job_side import die_with_parent, job_lock
from merit.io import sweep_parts
from merit.run.events import stage_events
from merit.run.guard import refuse_links
from merit.run.layout import RunDir

RANKED = "MERIT_RANKED"  # set for the processes that train one branch together


@dataclass(frozen=True)
class Ranks:
    """The processes of one branch: how many, and an accelerate configuration that says more than that."""

    processes: int = 1
    accelerate: Path | None = None

    @property
    def several(self) -> bool:
        return self.processes > 1 or self.accelerate is not None


def run_branch_job(
    root: Path, method: str, k: int, ranks: Ranks | None = None, model: Path | None = None
) -> BranchResult:
    """Trains branch `k` of `method` in the run at `root`, or returns what is finished.

    Args:
        ranks: the processes that train it together; default: this one.
        model: where θ0 lies on this machine, if not where the branch's spec says.

    Raises:
        InputError: `root` holds no such branch.
        StageError: another process trains it; or one of its processes failed.
    """
    run = RunDir(root)
    branch = run.method(method).branch(k)
    if os.environ.get(RANKED):
        die_with_parent(os.getppid())  # the launcher, which gives each process a session of its own
        from merit.branches.train import train_branch

        return train_branch(run, branch, base=root, model=model)
    die_with_parent()
    refuse_links(root)
    if not branch.spec.is_file():
        raise InputError(f"no branch {k} of {method!r} is planned here; `merit split` plans branches", file=root)
    with job_lock(branch.root / "lock"), stage_events(run.events, f"train {method} {k}") as facts:
        sweep_parts(branch.root, but=branch.job.name)  # which is the driver's
        if ranks is not None and ranks.several:
            from merit.branches.ranks import train_with_ranks

            arguments = ["train", str(root), "--branch", str(k), "--method", method]
            arguments += ["--model", str(model)] if model is not None else []
            result = train_with_ranks(branch, arguments, ranks)
        else:
            from merit.branches.train import train_branch

            result = train_branch(run, branch, base=root, model=model)
        facts |= {"supervised_tokens": result.supervised_tokens, "steps": result.steps}
    return result
