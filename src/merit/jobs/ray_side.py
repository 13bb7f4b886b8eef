"""What runs inside a Ray worker: one job's command, as a process of its own. Imported on every machine of the cluster.

A job is a process and not a Python call, so that it is the same command on every engine, frees its GPU memory whatever
happens, and cannot hurt the worker.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from merit.jobs.devices import thread_environment
from merit.jobs.job import End, Job
from merit.jobs.local import ended, start_process, stop_processes


def run_job(job: Job, driver_python: str, threads: int) -> tuple[End, str]:
    """Runs the job to its end; returns how it ended and on which machine."""
    command = [sys.executable if part == driver_python else part for part in job.command]
    started = start_process(job, command, thread_environment(threads))
    code: int | None = None
    try:
        while code is None:  # a wait without an end cannot be interrupted, and a cancelled task is
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = started.process.wait(timeout=1)
    finally:
        if code is None:
            stop_processes([started.process])
    return ended(job, code, started.printed), os.uname().nodename
