"""A branch on several devices: its processes under `accelerate launch`, watched by the job that holds the lock."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from merit.branches.finished import finished_branch
from merit.branches.job import RANKED, Ranks
from merit.branches.spec import BranchResult, BranchSpec
from merit.errors import InputError, StageError
from merit.run.fingerprint import fingerprint
from merit.run.layout import BranchDir
from merit.run.program import PYTHON


def train_with_ranks(branch: BranchDir, arguments: Sequence[str], ranks: Ranks) -> BranchResult:
    """Runs `merit ARGUMENTS` in several processes, to the end.

    Raises:
        InputError: the accelerate configuration is missing, or a process met bad input.
        StageError: a process failed; the branch resumes when it is started again.
    """
    mark = fingerprint(BranchSpec.load(branch.spec))
    done = finished_branch(branch, mark)
    if done is not None:
        return done
    env = {name: value for name, value in os.environ.items() if name != "MERIT_PARENT"}
    code = subprocess.run(
        [*launcher(ranks), "merit", *arguments], env=env | _environment(ranks), check=False
    ).returncode
    done = finished_branch(branch, mark)
    if done is None:
        raise StageError(f"its processes ended with exit code {code} and no result; what they said is above")
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
    # On CPU `accelerate launch` needs MPI; PyTorch's own launcher does not, and sets the same variables.
    return [*PYTHON, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks.processes}", "-m"]


def _environment(ranks: Ranks) -> dict[str, str]:
    env = {RANKED: "1", "PYTHONSAFEPATH": "1"}  # the latter is -P for what the launcher starts
    if ranks.accelerate is None and not _has_gpu():
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // ranks.processes)
        env |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    return env


def _has_gpu() -> bool:
    from torch import cuda

    return cuda.is_available()
