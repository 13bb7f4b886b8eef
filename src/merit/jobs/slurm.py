"""Runs jobs on a Slurm cluster, through submitit: one array job for all that start together. Needs the extra `slurm`.

Jobs stay in the queue when the driver ends; started again, it finds them by their records and goes on watching. A job
that is preempted or reaches its time limit is requeued and resumes.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, StageError, first_line
from merit.base.files import read_json, safe_name
from merit.base.logging import get_logger
from merit.base.progress import SILENT, Progress
from merit.config.launch import LaunchConfig, SlurmConfig
from merit.jobs.drive import Drive, Rules
from merit.jobs.failure import last_line
from merit.jobs.job import End, Job
from merit.jobs.local import read_progress
from merit.jobs.schedule import Slot
from merit.jobs.slurm_queue import (
    ENGINE,
    MACHINE_LOST,
    Queued,
    cancel_and_wait,
    cancel_jobs,
    missing_commands,
    no_answer,
    read_queue,
    recorded_id,
    spoken,
    unanswered,
)

_log = get_logger(__name__)
_MANY = 1000  # the queue is Slurm's business
_TICK_SECONDS = 0.5
_UNANSWERED_SECONDS = 900  # a controller that restarts is waited for


class SlurmExecutor:
    """Submits jobs and watches the queue."""

    def __init__(self, launch: LaunchConfig, rules: Rules, folder: Path) -> None:
        self._launch, self._rules, self._folder = launch, rules, folder

    def run(self, jobs: Sequence[Job], progress: Progress = SILENT) -> None:
        """Runs all jobs to their end.

        Raises:
            InputError: no Slurm or submitit here, Slurm refuses the options; or bad input failed a job.
            StageError: Slurm does not answer; or names each job that failed, and the end of what it printed.
        """
        todo = [job for job in jobs if not job.done.exists()]
        if todo:
            backend = SlurmBackend(self._launch, self._folder, self._rules.losses)
            Drive(backend, self._rules, progress).run(todo)


class SlurmBackend:
    """A Slurm cluster."""

    engine = ENGINE

    def __init__(self, launch: LaunchConfig, folder: Path, losses: int) -> None:
        self._submit = _make_submitter(launch, folder, losses)
        self._threads = launch.slurm.cpus
        self._poll_seconds = launch.slurm.poll_seconds
        self._folder = folder
        self._slots = [Slot(ENGINE, index) for index in range(_MANY)]
        self._ids: dict[str, str] = {}  # of every job that was started
        self._open: set[str] = set()  # names of those that have not ended
        self._printed: dict[str, int] = {}
        self._queue: dict[str, Queued] = {}
        self._asked = self._answered = time.monotonic()
        self._gone: dict[str, int] = {}  # job → how many answers in a row did not have it
        self._fresh = False
        self._told: set[str] = set()  # reasons that the user has been told of

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        from merit.jobs.slurm_side import JobCommand

        known = {job.name: ident for job, _ in placed if (ident := recorded_id(job.record)) is not None}
        queue = read_queue(known.values())
        fresh = []
        for job, _ in placed:
            self._gone[job.name] = 0
            self._printed[job.name] = job.output.stat().st_size if job.output.exists() else 0
            line = queue.get(known.get(job.name, ""))
            if line is not None and not line.over:
                self._ids[job.name] = known[job.name]
                _log.info("%s is in Slurm's queue already, as job %s", job.name, known[job.name])
            elif job.done.exists():  # it left the queue after the driver had looked for its marker
                self._ids[job.name] = known.get(job.name, "")
            else:
                fresh.append(job)
        for job in fresh:
            self._exit_file(job).unlink(missing_ok=True)
        commands = [JobCommand(job, sys.executable, self._threads, self._exit_file(job)) for job in fresh]
        for job, ident in zip(fresh, self._submit(commands) if commands else [], strict=True):
            self._ids[job.name] = ident
        self._open |= {job.name for job, _ in placed}
        self._asked = 0.0

    def poll(self, job: Job) -> End | None:
        self._refresh()
        line = self._queue.get(self._ids[job.name])
        if job.done.exists():
            end = End("done")
        elif line is not None and not line.over:
            self._gone[job.name] = 0
            return None
        else:
            # The marker may reach this machine later than the news that the job is over.
            self._gone[job.name] += self._fresh
            if self._gone[job.name] < 2:
                return None
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
        if not self._open:
            return
        if cancel:
            cancel_jobs(self._ids[name] for name in self._open)
        else:
            _log.warning(
                "%d jobs stay in Slurm's queue; run again to go on watching, `merit cancel` ends them", len(self._open)
            )

    def pause(self) -> None:
        time.sleep(min(_TICK_SECONDS, self._poll_seconds))

    def now(self) -> float:
        return time.monotonic()

    def _refresh(self) -> None:
        now = time.monotonic()
        self._fresh = now - self._asked >= self._poll_seconds
        if not self._fresh:
            return
        self._asked = now
        try:
            self._queue = read_queue(self._ids[name] for name in self._open)
            self._answered = now
            self._tell_stuck()
        except StageError:
            self._fresh = False
            if now - self._answered > _UNANSWERED_SECONDS:
                raise

    def _tell_stuck(self) -> None:
        """Says once of each reason why jobs will not start: without a terminal nobody sees the bars' notes."""
        for line in self._queue.values():
            if line.stuck is not None and line.reason not in self._told:
                self._told.add(line.reason)
                _log.warning("Slurm does not start a job (%s): %s", line.reason, line.stuck)

    def _why(self, job: Job, line: Queued | None) -> End:
        with contextlib.suppress(InputError, TypeError):
            return End(**read_json(self._exit_file(job)))
        # Where the job printed nothing, it may never have begun: Slurm's own log says why (srun, the setup's commands).
        log = self._folder / f"{self._ids[job.name]}_0_log.err"
        said = last_line(job.output, self._printed[job.name]) or last_line(log)
        if line is None:
            return End("lost", None, said or "gone from Slurm's queue")
        if line.state in MACHINE_LOST:
            return End("lost", None, f"Slurm: {line.state}")
        words = f"Slurm: {line.state}" + (f" ({line.reason})" if line.reason not in ("", "None") else "")
        return End("died", None, f"{words}: {said}" if said else words)

    def _exit_file(self, job: Job) -> Path:
        return self._folder / f"{safe_name(job.name)}.exit.json"


def _make_submitter(launch: LaunchConfig, folder: Path, losses: int) -> Any:
    """A function from commands to the ids of the Slurm jobs that run them."""
    try:
        import submitit
    except ImportError:
        raise InputError(
            "submitit is not installed; run `pip install 'merit-tuning[slurm]'`", field="launch.engine"
        ) from None
    missing = missing_commands()
    if missing:
        raise InputError(f"Slurm's commands ({', '.join(missing)}) are not on this machine", field="launch.engine")
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=losses, python=launch.slurm.python)
        executor.update_parameters(**_parameters(launch))
    except ValueError as error:
        raise InputError(first_line(error), field="launch.slurm") from None

    def submit(commands: Sequence[Any]) -> list[str]:
        try:
            # submitit prints what sbatch says, too.
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
