"""Runs jobs on a Slurm cluster, through submitit: one array job for all that start together. Needs the extra `slurm`.

Jobs stay in the queue when the driver ends. A new driver finds them by their records and watches them again. A job that
is preempted or reaches its time limit is requeued and resumes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, StageError, first_line
from merit.base.files import read_json, safe_name, write_json
from merit.base.machine import thread_environment
from merit.base.words import plural
from merit.config.launch import LaunchConfig, SlurmConfig
from merit.jobs.drive import DrivenExecutor, RetryPolicy, Slot
from merit.jobs.engine import Engine, Queue, QueuedJob
from merit.jobs.job import End, Job, JobRecord, last_line
from merit.jobs.nursery import Process
from merit.jobs.process import ended, read_progress, start_process, stop_processes

_log = logging.getLogger(__name__)
_NOT_INSTALLED = "submitit is not installed; run `pip install 'merit-tuning[slurm]'`"
_MANY = 1000  # Slurm queues what has no room
_TICK_SECONDS = 0.5
_JOB_POLL_SECONDS = 0.2  # on the node
_UNANSWERED_SECONDS = 900  # merit waits this long for a controller that restarts
NAME = "slurm"
# The states of a job that has ended; in any other state it waits or runs.
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
MACHINE_LOST = {"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT"}
# Reasons why a job will never start, and what the user can do. Slurm keeps such a job in its queue like any other.
_STUCK = {
    "PartitionTimeLimit": "it asks for more time than the partition allows; lower `launch.slurm.minutes`",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "BadConstraints": "no node has what it asks for; see `launch.slurm.extra`",
    "QOSMaxWallDurationPerJobLimit": "it asks for more time than the QOS allows; lower `launch.slurm.minutes`",
    "AssocMaxWallDurationPerJobLimit": "it asks for more time than the account may; lower `launch.slurm.minutes`",
    "InvalidAccount": "Slurm does not know the account; see `launch.slurm.account`",
    "InvalidQOS": "Slurm does not know the QOS; see `launch.slurm.extra`",
    "JobHeldUser": "it is held; `scontrol release` releases it",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
}
_SECONDS = 60  # a busy controller answers late
_COMMANDS = ("sbatch", "srun", "squeue", "scancel")
# The controller or munge is down, or this machine does not know where they are.
_UNANSWERED = re.compile(
    r"Unable to contact slurm controller|timed out|Zero Bytes|[Mm]unge|authentication|establish a configuration source"
    r"|process configuration file|Communication connection failure"
)


class SlurmExecutor(DrivenExecutor):
    """Submits jobs and watches the queue.

    `run` also raises InputError: no Slurm or submitit here, or Slurm refuses the options; StageError: Slurm does not
    answer.
    """

    def __init__(self, launch: LaunchConfig, policy: RetryPolicy, folder: Path) -> None:
        super().__init__(lambda: SlurmBackend(launch, folder, policy.preemption_retries), policy)


class SlurmBackend:
    """A Slurm cluster."""

    engine = NAME

    def __init__(self, launch: LaunchConfig, folder: Path, preemption_retries: int) -> None:
        self._submit = _make_submitter(launch, folder, preemption_retries)
        self._threads = launch.slurm.cpus
        self._poll_seconds = launch.slurm.poll_seconds
        self._folder = folder
        self._slots = [Slot(NAME, index) for index in range(_MANY)]
        self._ids: dict[str, str] = {}  # of every job that was started
        self._open: set[str] = set()  # names of those that have not ended
        self._recorded: set[str] = set()  # names of those that a later driver can find
        self._printed: dict[str, int] = {}
        self._queue: dict[str, QueuedJob] = {}
        self._asked = self._answered = time.monotonic()
        self._answers = 0  # of the queue, so far
        self._gone: dict[str, int] = {}  # job → the answer since which none has had it
        self._told: set[str] = set()  # reasons that the user has been told of

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        known = {job.name: ident for job, _ in placed if (ident := recorded_id(job.record)) is not None}
        queue = settled_queue(known.values())
        fresh = []
        for job, _ in placed:
            self._gone.pop(job.name, None)
            self._printed[job.name] = job.output.stat().st_size if job.output.exists() else 0
            line = queue.get(known.get(job.name, ""))
            if line is not None and not line.over:
                self._ids[job.name] = known[job.name]
                _log.info("%s is in Slurm's queue already, as job %s", job.name, known[job.name])
            elif job.done.exists():  # it finished after the driver had looked for its marker
                self._ids[job.name] = known.get(job.name, "")
            else:
                fresh.append(job)
        for job in fresh:
            self._exit_file(job).unlink(missing_ok=True)
        commands = [JobCommand(job, sys.executable, self._threads, self._exit_file(job)) for job in fresh]
        for job, ident in zip(fresh, self._submit(commands) if commands else [], strict=True):
            self._ids[job.name] = ident
        self._open |= {job.name for job, _ in placed}
        self._recorded |= {job.name for job, _ in placed if job.record is not None}
        self._asked = 0.0

    def poll(self, job: Job) -> End | None:
        self._refresh()
        line = self._queue.get(self._ids[job.name])
        if job.done.exists():
            end = End("done")
        elif line is not None and not line.over:
            self._gone.pop(job.name, None)
            return None
        elif self._answers <= self._gone.setdefault(job.name, self._answers):
            return None  # until one more answer: the marker may become visible here later than the end of the job
        else:
            end = self._why(job, line)
        self._open.discard(job.name)
        return end

    def state(self, job: Job) -> dict[str, Any]:
        line = self._queue.get(self._ids[job.name])
        state = read_progress(job)
        if line is not None and line.waits:
            return {"done": 0, "total": 1, **state, "note": f"Slurm: {line.state.lower()} ({line.reason})"}
        return state

    def about(self, job: Job) -> tuple[str, str]:
        ident = self._ids.get(job.name, "")
        line = self._queue.get(ident)
        return ident, line.nodes if line else ""

    def end(self, job: Job) -> None:
        self._open.discard(job.name)
        cancel_and_wait(self._ids[job.name])

    def close(self, cancel: bool) -> None:
        if cancel:
            cancel_jobs(self._ids[name] for name in self._open)
            return
        with contextlib.suppress(StageError):  # why this driver ends matters more
            cancel_jobs(self._ids[name] for name in self._open - self._recorded)
        if stay := len(self._open & self._recorded):
            told = plural(stay, "job stays", "jobs stay")
            _log.warning("%s in Slurm's queue; run again to go on watching, `merit cancel` ends them", told)

    def pause(self) -> None:
        time.sleep(min(_TICK_SECONDS, self._poll_seconds))

    def now(self) -> float:
        return time.monotonic()

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._asked < self._poll_seconds:
            return
        self._asked = now
        try:
            self._queue = read_queue(self._ids[name] for name in self._open)
            self._answers, self._answered = self._answers + 1, now
            self._tell_stuck()
        except StageError:
            if now - self._answered > _UNANSWERED_SECONDS:
                raise

    def _tell_stuck(self) -> None:
        """Warns once for each reason why jobs do not start: without a terminal nobody sees the bars' notes."""
        for line in self._queue.values():
            if line.waits and line.reason in _STUCK and line.reason not in self._told:
                self._told.add(line.reason)
                _log.warning("Slurm does not start a job (%s): %s", line.reason, _STUCK[line.reason])

    def _why(self, job: Job, line: QueuedJob | None) -> End:
        # Slurm's word first: a job that it asks to end exits as if by itself.
        if line is not None and line.state in MACHINE_LOST:
            return End("lost", None, f"Slurm: {line.state}")
        if line is not None and line.state == "CANCELLED":
            return End("cancelled", None, f"job {self._ids[job.name]} was cancelled in Slurm; run again to resume")
        with contextlib.suppress(InputError, TypeError):
            return End(**read_json(self._exit_file(job)))
        # A job that printed nothing may never have begun: Slurm's own log says why (srun, the setup's commands).
        log = self._folder / f"{self._ids[job.name]}_0_log.err"
        said = last_line(job.output, self._printed[job.name]) or last_line(log)
        if line is None:
            return End("lost", None, said or "gone from Slurm's queue")
        words = f"Slurm: {line.state}" + (f" ({line.reason})" if line.reason not in ("", "None") else "")
        return End("died", None, f"{words}: {said}" if said else words)

    def _exit_file(self, job: Job) -> Path:
        return self._folder / f"{safe_name(job.name)}.exit.json"


def _make_submitter(launch: LaunchConfig, folder: Path, preemption_retries: int) -> Any:
    """A function that submits commands and returns the ids of their Slurm jobs."""
    try:
        import submitit
    except ImportError:
        raise InputError(_NOT_INSTALLED, field="launch.engine") from None
    missing = missing_commands()
    if missing:
        raise InputError(f"Slurm's commands ({', '.join(missing)}) are not on this machine", field="launch.engine")
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=preemption_retries, python=launch.slurm.python)
        executor.update_parameters(**_parameters(launch))
    except ValueError as error:
        raise InputError(first_line(error), field="launch.slurm") from None

    def submit(commands: Sequence[Any]) -> list[str]:
        try:
            # submitit also prints what sbatch says.
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [executor.submit(command) for command in commands]
            return [job.job_id for job in jobs]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            if unanswered(str(error)):
                raise StageError(no_answer(str(error))) from None
            raise InputError(f"sbatch refused the job: {spoken(str(error))}", field="launch.slurm") from None

    return submit


def _parameters(launch: LaunchConfig) -> dict[str, Any]:
    config: SlurmConfig = launch.slurm
    parameters: dict[str, Any] = {
        "job_name": "merit",
        "time": config.minutes,
        "cpus_per_task": config.cpus,
        "partition": config.partition,
        "gpus_per_node": config.gpus or None,
        "mem": None if config.memory_gb is None else f"{round(config.memory_gb * 1000)}M",
        "setup": config.setup or None,
        "array_parallelism": launch.parallel or _MANY,
        "additional_parameters": {
            "requeue": True,
            **({"account": config.account} if config.account else {}),
            **config.extra,
        },
    }
    return {key: value for key, value in parameters.items() if value is not None}


@dataclass
class JobCommand:
    """A job that submitit runs, and requeues when Slurm preempts it or its time is up.

    Attributes:
        job: what to run.
        driver_python: the driver's interpreter; this machine's own replaces it in the command.
        threads: how many cores it may use.
        exit_file: where to write how it ended, as JSON (an End).
    """

    job: Job
    driver_python: str
    threads: int
    exit_file: Path
    _process: Process | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Runs the job to its end."""
        self.exit_file.unlink(missing_ok=True)  # of a start before Slurm requeued it
        command = [sys.executable if part == self.driver_python else part for part in self.job.command]
        started = start_process(self.job, command, thread_environment(self.threads))
        self._process = started.process
        # Not `wait`: it holds a lock that `checkpoint` needs, which a signal may call in the middle of it.
        while (code := started.process.poll()) is None:
            time.sleep(_JOB_POLL_SECONDS)
        write_json(self.exit_file, asdict(ended(self.job, code, started.printed)))

    def checkpoint(self) -> Any:
        """submitit calls it shortly before the time limit. The requeued job resumes from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            stop_processes([self._process])
            self._process = None
        return DelayedSubmission(self)


def _about() -> str:
    try:
        version = metadata.version("submitit")
    except metadata.PackageNotFoundError:
        return _NOT_INSTALLED
    missing = missing_commands()
    return f"submitit {version}" + (f"; not on this machine: {', '.join(missing)}" if missing else "")


def _queued(state: str, reason: str, nodes: str) -> QueuedJob:
    over = state in _OVER
    return QueuedJob(state, reason, nodes, over, waits=not over and state not in ("RUNNING", "COMPLETING"))


def missing_commands() -> list[str]:
    """The commands of Slurm that merit needs and this machine lacks."""
    return [name for name in _COMMANDS if shutil.which(name) is None]


def unanswered(said: str) -> bool:
    """Whether a Slurm command that failed with these words got no answer, so that no job is to blame."""
    return _UNANSWERED.search(said) is not None


def spoken(stderr: str) -> str:
    """What a failed command said, in one line, without prefixes such as `sbatch: error: `."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()] or lines
    return "; ".join(re.sub(r"^(\w+: )*(error|fatal): ", "", line) for line in told[-3:])[:300]


def read_queue(ids: Iterable[str]) -> dict[str, QueuedJob]:
    """Job id → job, of those that Slurm still knows. It remembers finished jobs for some minutes.

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
            found[name] = _queued(*parts)
    return found


def settled_queue(ids: Iterable[str]) -> dict[str, QueuedJob]:
    """As `read_queue`, but waits for jobs that are just ending: only then can a cancelled one, which is sent again, be
    told from one that is requeued."""
    wanted, deadline = list(ids), time.monotonic() + _SECONDS
    while True:
        queue = read_queue(wanted)
        ending = any(line.state == "COMPLETING" for line in queue.values())
        if not ending or time.monotonic() > deadline:
            return queue
        time.sleep(_TICK_SECONDS)


def cancel_jobs(ids: Iterable[str]) -> None:
    """Takes jobs out of the queue, running or not. Jobs that have ended already do not matter.

    Raises:
        StageError: the controller does not answer: the jobs go on.
    """
    wanted = _job_ids(ids)
    if wanted:
        result = _call(["scancel", "--quiet", *wanted])
        if result.returncode and unanswered(result.stderr):
            raise StageError(no_answer(result.stderr))


def no_answer(stderr: str) -> str:
    """The message for a command that got no answer."""
    return f"Slurm does not answer: {spoken(stderr)}; run again when it does"


def cancel_and_wait(ident: str) -> None:
    """Takes one job out of the queue, and returns when the job has ended."""
    cancel_jobs([ident])
    while (line := read_queue([ident]).get(ident)) is not None and not line.over:
        time.sleep(0.5)


def recorded_id(record: Path | None) -> str | None:
    """The id of the Slurm job in the record at `record`."""
    known = JobRecord.load(record)
    return known.id if known is not None and known.engine == NAME and known.id else None


def _job_ids(ids: Iterable[str]) -> list[str]:
    """Those of `ids` that are job ids: a run's files may come from a stranger, and `--user=…` would be an option."""
    return sorted({name for name in ids if re.fullmatch(r"[0-9]{1,12}(_[0-9]{1,9})?", name)})


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise StageError(f"Slurm's command `{command[0]}` is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise StageError(f"Slurm does not answer: `{command[0]}` took more than {_SECONDS} s") from None


ENGINE = Engine(
    executor=SlurmExecutor,
    about=_about,
    queue=Queue("Slurm", lambda: not missing_commands(), read_queue, cancel_jobs, cancel_and_wait),
)
