"""What runs inside a Slurm job: one job's command, as a process of its own. submitit carries it there."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from merit.base.files import write_json
from merit.jobs.devices import thread_environment
from merit.jobs.job import Job
from merit.jobs.local import ended, start_process, stop_processes

_POLL_SECONDS = 0.2


@dataclass
class JobCommand:
    """A job that submitit runs, and requeues when Slurm preempts it or its time is up.

    Attributes:
        job: what to run.
        driver_python: the interpreter in its command that this machine's own replaces.
        threads: cores that it may use.
        exit_file: gets how it ended, as JSON (an End).
    """

    job: Job
    driver_python: str
    threads: int
    exit_file: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Runs the job to its end."""
        command = [sys.executable if part == self.driver_python else part for part in self.job.command]
        started = start_process(self.job, command, thread_environment(self.threads))
        self._process = started.process
        # No wait without an end: it holds a lock that `checkpoint`, called by a signal in the midst of it, needs.
        while (code := started.process.poll()) is None:
            time.sleep(_POLL_SECONDS)
        write_json(self.exit_file, asdict(ended(self.job, code, started.printed)))

    def checkpoint(self) -> Any:
        """Called by submitit shortly before the time is up: the requeued job resumes from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            stop_processes([self._process])
            self._process = None
        return DelayedSubmission(self)
