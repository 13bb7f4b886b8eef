"""A job as a process: how an engine starts, reads and stops it, and how it notices that its engine is gone."""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base.errors import StageError
from merit.base.locks import claim
from merit.jobs.job import End, Job, last_line
from merit.jobs.nursery import Process, fork

_PATIENCE_SECONDS = 10  # between asking a job to end and killing it
_CHECK_SECONDS = 0.5


@dataclass
class JobProcess:
    """A job's command, started."""

    process: Process
    printed: int  # bytes of output before this start


def start_process(job: Job, command: Sequence[str], env: dict[str, str]) -> JobProcess:
    """Starts `command` for `job` in a process group of its own, its output appended to the job's."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    job.progress.unlink(missing_ok=True)
    env = os.environ | env | job.env | {"MERIT_PARENT": str(os.getpid()), "MERIT_OUTPUT": str(job.output)}
    with job.output.open("ab") as output:
        printed = output.tell()
        process = fork(command, env, output) or subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # a Ctrl-C reaches the job once, through us
        )
    return JobProcess(process, printed)


def ended(job: Job, code: int, printed: int) -> End:
    """How a process ended. Only the marker decides, whatever the exit code."""
    if job.done.exists():
        return End("done", code)
    return End("died", code, last_line(job.output, printed))


def read_progress(job: Job) -> dict[str, Any]:
    """The job's progress file; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        state = json.loads(job.progress.read_text(encoding="utf-8"))
        if isinstance(state, dict):
            return state
    return {}


def stop_processes(processes: Sequence[Process]) -> None:
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


def die_with_parent(parent: int | None = None) -> None:
    """Ends this job soon after the executor that started it (or the process `parent`) dies, however it dies.

    So a killed run leaves no branch that trains in the background and races with the next run's.
    """
    parent = parent or int(os.environ.get("MERIT_PARENT", "0"))
    if parent:
        # `Thread.start` would wait for ever for a thread that had no memory to begin.
        _thread.start_new_thread(_watch, (parent,))


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_SECONDS)
    if os.getpgrp() == os.getpid():
        # The executor gave this job its own process group: everything that it started ends with it.
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextlib.contextmanager
def job_lock(path: Path, *, wait_seconds: float = 30) -> Iterator[None]:
    """Holds the lock of one job's folder. Waits, because an orphaned predecessor takes a moment to end.

    Raises:
        StageError: another process still works on it.
    """
    with claim(path, wait_seconds=wait_seconds) as mine:
        if not mine:
            raise StageError(f"{path.parent}: another process works on this job")
        yield
