"""Slurm's own commands: what is in the queue, and how to take something out of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import StageError
from merit.jobs.record import JobRecord

ENGINE = "slurm"

# What a job can be in when it is over; any other state means that it waits or runs.
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
MACHINE_LOST = {"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT"}
# Reasons to wait that no waiting ends, and what does. Slurm has such a job stand in the queue like any other.
_STUCK = {
    "PartitionTimeLimit": "it asks for more time than the partition allows; lower `launch.slurm.minutes`",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "BadConstraints": "no node has what it asks for; see `launch.slurm.extra`",
    "QOSMaxWallDurationPerJobLimit": "it asks for more time than the QOS allows; lower `launch.slurm.minutes`",
    "AssocMaxWallDurationPerJobLimit": "it asks for more time than the account may; lower `launch.slurm.minutes`",
    "InvalidAccount": "Slurm does not know the account; see `launch.slurm.account`",
    "InvalidQOS": "Slurm does not know the QOS; see `launch.slurm.extra`",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
}
_SECONDS = 60  # a busy controller answers late
_COMMANDS = ("sbatch", "srun", "squeue", "scancel")
# The controller or munge is down, or this machine is not told where they are.
_UNANSWERED = re.compile(
    r"Unable to contact slurm controller|timed out|Zero Bytes|[Mm]unge|authentication|establish a configuration source"
    r"|process configuration file|Communication connection failure"
)


@dataclass(frozen=True)
class Queued:
    """One line of the queue."""

    state: str
    reason: str
    nodes: str

    @property
    def over(self) -> bool:
        return self.state in _OVER

    @property
    def waits(self) -> bool:
        return self.state not in _OVER and self.state not in ("RUNNING", "COMPLETING")

    @property
    def stuck(self) -> str | None:
        """Why this job will not start by itself, and what the user can do; None if it runs or may start."""
        return _STUCK.get(self.reason) if self.waits else None


def missing_commands() -> list[str]:
    """Those of Slurm's commands that are needed and not on this machine."""
    return [name for name in _COMMANDS if shutil.which(name) is None]


def installed() -> bool:
    """Whether this machine has Slurm's commands."""
    return not missing_commands()


def unanswered(said: str) -> bool:
    """Whether one of Slurm's commands failed with these words because nobody answered it, and not because of a job."""
    return _UNANSWERED.search(said) is not None


def spoken(stderr: str) -> str:
    """What a failed command said, in one line, without its name and its levels (`sbatch: error: `)."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()] or lines
    return "; ".join(re.sub(r"^(\w+: )*(error|fatal): ", "", line) for line in told[-3:])[:300]


def read_queue(ids: Iterable[str]) -> dict[str, Queued]:
    """Job id → its line, of those that Slurm still knows; finished ones stay known for some minutes.

    Raises:
        StageError: the controller does not answer.
    """
    wanted = _job_ids(ids)
    if not wanted:
        return {}
    parents = ",".join(sorted({name.split("_")[0] for name in wanted}))
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N", f"--jobs={parents}"]
    result = _call(command)
    if result.returncode and "Invalid job id" not in result.stderr:
        raise StageError(no_answer(result.stderr) if unanswered(result.stderr) else f"squeue: {spoken(result.stderr)}")
    found = {}
    for line in result.stdout.splitlines():
        name, _, rest = line.partition("|")
        if name in wanted and len(parts := rest.split("|")) == 3:
            found[name] = Queued(*parts)
    return found


def cancel_jobs(ids: Iterable[str]) -> None:
    """Takes jobs out of the queue, running or not; those that are gone already do not matter.

    Raises:
        StageError: the controller does not answer: the jobs go on.
    """
    wanted = _job_ids(ids)
    if wanted:
        result = _call(["scancel", "--quiet", *wanted])
        if result.returncode and unanswered(result.stderr):
            raise StageError(no_answer(result.stderr))


def no_answer(stderr: str) -> str:
    """The error of a command that nobody answered."""
    return f"Slurm does not answer: {spoken(stderr)}; run again when it does"


def cancel_and_wait(ident: str) -> None:
    """Takes one job out of the queue, and returns when it has ended."""
    cancel_jobs([ident])
    while (line := read_queue([ident]).get(ident)) is not None and not line.over:
        time.sleep(0.5)


def recorded_id(record: Path | None) -> str | None:
    """The Slurm job that the note at `record` speaks of."""
    known = JobRecord.load(record)
    return known.id if known is not None and known.engine == ENGINE and known.id else None


def release(record: Path) -> None:
    """Ends what an earlier driver left in the queue, before the job's files are touched."""
    ident = recorded_id(record)
    if ident is not None and installed():
        cancel_and_wait(ident)


def _job_ids(ids: Iterable[str]) -> list[str]:
    """Those that are ids: a run's files may be a stranger's, and `--user=…` would be an option."""
    return sorted({name for name in ids if re.fullmatch(r"[0-9]{1,12}(_[0-9]{1,9})?", name)})


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise StageError(f"Slurm's command `{command[0]}` is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise StageError(f"Slurm does not answer: `{command[0]}` took more than {_SECONDS} s") from None
