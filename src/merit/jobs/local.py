"""Runs jobs on this machine, as many at once as it has devices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merit.base.files import disk_errors
from merit.base.progress import SILENT, Progress
from merit.jobs.devices import slot_environments, usable_cores, visible_gpus
from merit.jobs.drive import Drive, Rules
from merit.jobs.failure import last_line
from merit.jobs.job import End, Job
from merit.jobs.schedule import Slot

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 10  # between asking a job to end and killing it


class LocalExecutor:
    """Starts jobs, watches their progress files, restarts those that died."""

    def __init__(self, *, parallel: int | None = None, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._environments = slot_environments(parallel, visible_gpus(), usable_cores())

    def run(self, jobs: Sequence[Job], progress: Progress = SILENT) -> None:
        """Runs all jobs to their end, longest first. When one fails for good, the others still finish.

        Raises:
            StageError: names each job that failed, and the end of what it printed.
            InputError: the same, when bad input was the cause.
        """
        backend = LocalBackend(self._environments)
        Drive(backend, self._rules, progress).run([job for job in jobs if not job.done.exists()])


def local_slots(parallel: int | None) -> int:
    """How many jobs run on this machine at once."""
    return len(slot_environments(parallel, visible_gpus(), usable_cores()))


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    printed: int  # bytes of output before this start


class LocalBackend:
    """Processes of this machine; jobs end with the process that started them."""

    engine = "local"

    def __init__(self, environments: Sequence[dict[str, str]]) -> None:
        self._environments = environments
        self._slots = [Slot("this machine", index) for index in range(len(environments))]
        self._running: dict[str, _Process] = {}

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        for job, slot in placed:
            with disk_errors(job.output):
                self._running[job.name] = start_process(job, job.command, self._environments[slot.index])

    def poll(self, job: Job) -> End | None:
        running = self._running[job.name]
        code = running.process.poll()
        if code is None:
            return None
        del self._running[job.name]
        return ended(job, code, running.printed)

    def state(self, job: Job) -> dict[str, Any]:
        return read_progress(job)

    def about(self, job: Job) -> tuple[str, str]:
        running = self._running.get(job.name)
        return (str(running.process.pid) if running else "", os.uname().nodename)

    def end(self, job: Job) -> None:
        stop_processes([self._running.pop(job.name).process])

    def close(self, cancel: bool) -> None:
        stop_processes([item.process for item in self._running.values()])

    def pause(self) -> None:
        time.sleep(_POLL_SECONDS)

    def now(self) -> float:
        return time.monotonic()


def start_process(job: Job, command: Sequence[str], env: dict[str, str]) -> _Process:
    """Starts `command` for `job` in a process group of its own, its output appended to the job's."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    job.progress.unlink(missing_ok=True)
    with job.output.open("ab") as output:
        printed = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | env | job.env | {"MERIT_PARENT": str(os.getpid()), "MERIT_OUTPUT": str(job.output)},
            start_new_session=True,  # a Ctrl-C reaches the job once, through us
        )
    return _Process(process, printed)


def ended(job: Job, code: int, printed: int) -> End:
    """What came of a process. The marker counts, whatever the exit code."""
    if job.done.exists():
        return End("done", code)
    return End("died", code, last_line(job.output, printed))


def read_progress(job: Job) -> dict[str, Any]:
    """What the job last wrote about itself; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        state = json.loads(job.progress.read_text(encoding="utf-8"))
        if isinstance(state, dict):
            return state
    return {}


def stop_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks process groups to end, and kills those that do not."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_PATIENCE_SECONDS)
    finally:  # also at a second Ctrl-C
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
