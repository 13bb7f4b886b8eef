"""A job as a process of the machine that it runs on: started, read, ended. What engines do with it is theirs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merit.jobs.failure import last_line
from merit.jobs.job import End, Job

_PATIENCE_SECONDS = 10  # between asking a job to end and killing it


@dataclass
class JobProcess:
    """A job's command, started."""

    process: subprocess.Popen[bytes]
    printed: int  # bytes of output before this start


def start_process(job: Job, command: Sequence[str], env: dict[str, str]) -> JobProcess:
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
    return JobProcess(process, printed)


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
