"""Runs jobs on this machine, as many at once as it has devices."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from merit.base.files import disk_errors
from merit.base.machine import local_slots, slot_environments, usable_cores, visible_gpus
from merit.base.progress import SILENT, Progress
from merit.jobs.drive import Drive, RetryPolicy, Slot
from merit.jobs.engine import Engine
from merit.jobs.job import End, Job
from merit.jobs.process import JobProcess, ended, read_progress, start_process, stop_processes

_POLL_SECONDS = 0.2


class LocalExecutor:
    """Starts jobs, watches their progress files, restarts those that died."""

    def __init__(self, *, parallel: int | None = None, policy: RetryPolicy | None = None) -> None:
        self._policy = policy or RetryPolicy()
        self._environments = slot_environments(parallel, visible_gpus(), usable_cores())

    def run(self, jobs: Sequence[Job], progress: Progress = SILENT) -> None:
        """Runs all jobs to their end, longest first. When one fails for good, the others still finish.

        Raises:
            StageError: names each job that failed, and the end of what it printed.
            InputError: the same, when bad input was the cause.
        """
        backend = LocalBackend(self._environments)
        Drive(backend, self._policy, progress).run([job for job in jobs if not job.done.exists()])


class LocalBackend:
    """Processes of this machine; jobs end with the process that started them."""

    engine = "local"

    def __init__(self, environments: Sequence[dict[str, str]]) -> None:
        self._environments = environments
        self._slots = [Slot("this machine", index) for index in range(len(environments))]
        self._running: dict[str, JobProcess] = {}

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


ENGINE = Engine(
    executor=lambda launch, policy, _: LocalExecutor(parallel=launch.parallel, policy=policy),
    about=lambda: f"this machine, {local_slots(None)} jobs at once",
    on_this_machine=True,
)
