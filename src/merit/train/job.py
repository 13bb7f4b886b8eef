"""The job of a branch, `merit train RUN --branch k`: how the driver describes it, and what it does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.base.files import sweep_parts
from merit.base.machine import PYTHON, merit_command
from merit.base.record import fingerprint
from merit.config.launch import LaunchConfig
from merit.context import Method, RunContext
from merit.jobs.job import Job
from merit.jobs.process import die_with_parent, job_lock
from merit.run.events import stage_events
from merit.run.guard import refuse_links, unplanned
from merit.run.layout import BranchDir, RunDir
from merit.train.spec import BranchResult, BranchSpec, trained_branch
from merit.train.staging import store_url

RANKED = "MERIT_RANKED"  # set in the processes that train one branch together


@dataclass(frozen=True)
class Ranks:
    """How many processes train one branch, or the accelerate configuration that says so."""

    processes: int = 1
    accelerate: Path | None = None

    @property
    def several(self) -> bool:
        return self.processes > 1 or self.accelerate is not None


def run_branch_job(
    root: Path, method: str, k: int, ranks: Ranks | None = None, model: Path | None = None, number: int | None = None
) -> BranchResult:
    """Trains branch `k` of `method` in the run at `root`, unless it is trained already, and measures what its
    measure.json asks for.

    Args:
        ranks: the processes that train it together; default: this one alone.
        model: where θ0 is on this machine; default: where the branch's spec says.
        number: a round before the last; default: the last.

    Raises:
        InputError: `root` holds no such branch.
        StageError: another process trains it; or one of its processes failed.
    """
    run = RunDir(root)
    home = run.method(method)
    branch = (home if number is None else home.round(number)).branch(k)
    if os.environ.get(RANKED):
        die_with_parent(os.getppid())  # the launcher, which starts each process in its own session
        from merit.train.branch import train_branch

        return train_branch(run, branch, base=root, model=model)
    die_with_parent()
    refuse_links(root)
    if not branch.spec.is_file():
        raise unplanned(run, method, k, "`merit train` plans branches")
    with job_lock(branch.root / "lock"), stage_events(run.events, f"train {method} {k}") as facts:
        sweep_parts(branch.root, but=branch.job.name)  # the driver writes that one
        if trained_branch(branch, fingerprint(BranchSpec.load(branch.spec))) is not None:
            facts |= {"found": True}  # an earlier driver's job has trained it, while this one waited for the lock
        if ranks is not None and ranks.several:
            arguments = ["train", str(root), "--branch", str(k), "--method", method]
            arguments += ["--model", str(model)] if model is not None else []
            arguments += ["--round", str(number)] if number is not None else []
            result = train_with_ranks(branch, arguments, ranks)
        else:
            from merit.train.branch import train_branch

            result = train_branch(run, branch, base=root, model=model)
        if branch.measure.is_file():
            from merit.train.curvature import measure_branch

            result = measure_branch(run, branch)
        facts |= {"supervised_tokens": result.supervised_tokens, "steps": result.steps}
    return result


def train_with_ranks(branch: BranchDir, arguments: Sequence[str], ranks: Ranks) -> BranchResult:
    """Runs `merit ARGUMENTS` in several processes, to their end.

    Raises:
        InputError: the accelerate configuration is missing, or a process met bad input.
        StageError: a process failed; the branch resumes when it is started again.
    """
    mark = fingerprint(BranchSpec.load(branch.spec))
    done = trained_branch(branch, mark)
    if done is not None:
        return done
    env = {name: value for name, value in os.environ.items() if name != "MERIT_PARENT"}
    code = subprocess.run(
        [*launcher(ranks), "merit", *arguments], env=env | _environment(ranks), check=False
    ).returncode
    done = trained_branch(branch, mark)
    if done is None:
        raise StageError(f"its processes ended with exit code {code} and without a result; see their messages above")
    return done


def launcher(ranks: Ranks) -> list[str]:
    """The command that starts the processes, up to the module that they run.

    Raises:
        InputError: no such accelerate configuration.
    """
    if ranks.accelerate is not None:
        if not ranks.accelerate.is_file():
            raise InputError("no such accelerate configuration", file=ranks.accelerate, field="launch.accelerate")
        command = [*PYTHON, "-m", "accelerate.commands.launch", "--config_file", str(ranks.accelerate)]
        return [*command, *(["--num_processes", str(ranks.processes)] if ranks.processes > 1 else []), "--module"]
    if _has_gpu():
        options = ["--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        return [
            *(*PYTHON, "-m", "accelerate.commands.launch", "--num_processes", str(ranks.processes), *options),
            *("--main_process_port=0", "--module"),
        ]
    # On CPU `accelerate launch` needs MPI. PyTorch's own launcher does not, and sets the same variables.
    return [*PYTHON, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks.processes}", "-m"]


def _environment(ranks: Ranks) -> dict[str, str]:
    env = {RANKED: "1", "PYTHONSAFEPATH": "1"}  # -P for the processes that the launcher starts
    if ranks.accelerate is None and not _has_gpu():
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // ranks.processes)
        env |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    return env


def _has_gpu() -> bool:
    from torch import cuda

    return cuda.is_available()


def branch_job(
    context: RunContext, method: Method, branch: BranchDir, spec: BranchSpec, *, launch: LaunchConfig | None = None
) -> Job:
    """`merit train RUN --branch k --method NAME`, with the devices that the configuration gives to a branch.

    Args:
        launch: where it runs; default: as the configuration says.
    """
    launch = context.config.launch if launch is None else launch
    root = store_url(context) if launch.store is not None else str(context.run.root.resolve())
    command = merit_command("train", root, "--branch", str(spec.branch), "--method", method.name)
    if not spec.is_last:
        command += ["--round", str(spec.round)]
    if launch.processes > 1:
        command += ["--processes", str(launch.processes)]
    if launch.accelerate is not None:
        command += ["--accelerate", launch.accelerate]
    return Job(
        name=f"{method.name} branch {spec.branch}"
        + (f" round {spec.round} of {method.rounds}" if method.rounds > 1 else ""),
        command=tuple(command),
        done=branch.done,
        progress=branch.progress,
        output=branch.output,
        weight=spec.planned_tokens,
        env=launch.env,
        record=branch.job,
    )
