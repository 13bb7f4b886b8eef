"""Runs jobs on this machine, as many at once as it has devices."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from merit.base.files import disk_errors
from merit.base.machine import local_slots, slot_environments, usable_cores, visible_gpus
from merit.base.words import plural
from merit.jobs.drive import DrivenExecutor, RetryPolicy, Slot
from merit.jobs.engine import Engine
from merit.jobs.job import End, Job
from merit.jobs.nursery import open_nursery
from merit.jobs.process import JobProcess, ended, read_progress, start_process, stop_processes

_POLL_SECONDS = 0.2


class LocalExecutor(DrivenExecutor):
    """Starts jobs, watches their progress files, restarts those that died."""

    def __init__(self, *, parallel: int | None = None, policy: RetryPolicy | None = None) -> None:
        environments = _environments(parallel)
        super().__init__(lambda: LocalBackend(environments), policy or RetryPolicy())


class LocalBackend:
    """Processes of this machine; jobs end with the process that started them."""

    engine = "local"

    def __init__(self, environments: Sequence[dict[str, str]]) -> None:
        self._environments = environments
        self._slots = [Slot("this machine", index) for index in range(len(environments))]
        self._running: dict[str, JobProcess] = {}
        open_nursery(environments[0])  # without GPUs all are alike

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


def _environments(parallel: int | None) -> list[dict[str, str]]:
    return slot_environments(parallel, visible_gpus(), usable_cores())


ENGINE = Engine(
    executor=lambda launch, policy, _: LocalExecutor(parallel=launch.parallel, policy=policy),
    about=lambda: f"this machine, {plural(local_slots(None), 'job')} at once",
    expect=lambda launch: open_nursery(_environments(launch.parallel)[0]),
    on_this_machine=True,
)
