"""Runs jobs on a Ray cluster: one task a job, on the machines of a pool. Needs the extra `ray`."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merit.base.errors import first_line
from merit.base.logging import get_logger
from merit.base.progress import SILENT, Progress
from merit.config.launch import LaunchConfig, RayConfig, RayPool
from merit.jobs.drive import Drive, Rules
from merit.jobs.failure import last_line
from merit.jobs.job import End, Job
from merit.jobs.local import read_progress
from merit.jobs.ray_cluster import connect, head_of
from merit.jobs.ray_side import run_job
from merit.jobs.schedule import Slot

_log = get_logger(__name__)
_POLL_SECONDS = 0.5
_MANY = 1000  # slots of a pool without a limit: Ray itself queues what has no room


class RayExecutor:
    """Starts each job as a task on the cluster; a task whose machine goes away starts again elsewhere."""

    def __init__(self, launch: LaunchConfig, rules: Rules) -> None:
        self._launch, self._rules = launch, rules

    def run(self, jobs: Sequence[Job], progress: Progress = SILENT) -> None:
        """Runs all jobs to their end, the longest on the fastest pool.

        Raises:
            InputError: Ray is not installed or not reachable, no machine can ever hold a job; or bad input failed one.
            StageError: names each job that failed, and the end of what it printed.
        """
        todo = [job for job in jobs if not job.done.exists()]
        if todo:
            with RayBackend(self._launch) as backend:
                Drive(backend, self._rules, progress).run(todo)


class RayBackend:
    """A Ray cluster. Tasks end with their driver."""

    engine = "ray"

    def __init__(self, launch: LaunchConfig) -> None:
        self._config = launch.ray
        self._parallel = launch.parallel
        self._store = launch.store is not None
        self._tasks: dict[str, tuple[Any, Slot, int]] = {}  # job → reference, slot, bytes printed before
        self._about: dict[str, tuple[str, str]] = {}  # job → Ray's id of its task, and where it is

    def __enter__(self) -> RayBackend:
        self._ray, self._started = connect(self._config)
        with contextlib.ExitStack() as stack:
            stack.callback(self.__exit__)
            self._head = head_of(self._ray, self._config)
            self._pools = pools_of(self._config)
            there = self._ray.cluster_resources()
            self._gpus_there = there.get("GPU", 0.0) >= 1
            self._slots = self._make_slots(there)
            self._task = self._ray.remote(run_job)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._ray.shutdown()

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        for job, slot in placed:  # without a word to the head: where it is gone, Ray would wait, and end the process
            pool = self._pools[slot.pool]
            cpus = pool.cpus or self._config.cpus
            task = self._task.options(
                name=job.name,
                num_cpus=cpus,
                num_gpus=self._gpus(pool),
                resources=dict(pool.resources) or None,
                accelerator_type=pool.accelerator,
                memory=None if self._config.memory_gb is None else int(self._config.memory_gb * 1e9),
                max_retries=0,  # ours to count: Ray's own restarts would not be seen
            )
            printed = job.output.stat().st_size if job.output.exists() else 0
            where = _elsewhere(job) if self._store else job
            reference = task.remote(where, sys.executable, max(1, int(cpus)))
            self._tasks[job.name] = (reference, slot, printed)
            self._about[job.name] = (reference.task_id().hex(), slot.pool)

    def poll(self, job: Job) -> End | None:
        reference, _, printed = self._tasks[job.name]
        end: End
        ready, _ = self._ray.wait([reference], timeout=0)
        if not ready:
            return None
        failures = self._ray.exceptions
        try:
            end, host = self._ray.get(reference)
            self._about[job.name] = (self._about[job.name][0], host)
        except failures.OutOfMemoryError:
            end = End("died", -signal.SIGKILL, "Ray ended it: the machine ran out of memory")
        except (failures.WorkerCrashedError, failures.NodeDiedError, failures.ObjectLostError) as error:
            end = End("lost", None, first_line(error))
        except failures.RayTaskError as error:  # before the process: no such folder there, no merit there
            end = End("died", 1, first_line(error.cause))
        except failures.RayError as error:
            end = End("died", None, first_line(error))
        if end.kind != "done" and job.done.exists():
            end = End("done")
        elif end.kind == "lost" and not end.said:
            end = End("lost", None, last_line(job.output, printed))
        del self._tasks[job.name]
        return end

    def state(self, job: Job) -> dict[str, Any]:
        return read_progress(job)

    def about(self, job: Job) -> tuple[str, str]:
        return self._about.get(job.name, ("", ""))

    def end(self, job: Job) -> None:
        reference, _, _ = self._tasks.pop(job.name)
        self._ray.cancel(reference, force=False)
        self._ray.wait([reference], timeout=30)

    def close(self, cancel: bool) -> None:
        references = [reference for reference, _, _ in self._tasks.values()]
        for reference in references:
            self._ray.cancel(reference, force=False)
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=15)
        self._tasks.clear()

    def pause(self) -> None:
        references = [reference for reference, _, _ in self._tasks.values()]
        if references:
            self._ray.wait(references, timeout=_POLL_SECONDS)
        else:
            time.sleep(_POLL_SECONDS)
        self._head.look()

    def now(self) -> float:
        return time.monotonic()

    def _make_slots(self, there: Mapping[str, float]) -> list[Slot]:
        slots = []
        for name, pool in self._pools.items():
            needs = {"CPU": pool.cpus or self._config.cpus, "GPU": self._gpus(pool), **pool.resources}
            for key, amount in needs.items():
                if amount > there.get(key, 0.0):
                    # Machines may still be starting: an autoscaler adds them when they are asked for.
                    _log.warning("no %s on the Ray cluster yet for pool %s; jobs wait until there is", key, name)
            count = pool.slots or self._parallel or _MANY
            slots += [Slot(name, index, pool.speed) for index in range(count)]
        return slots

    def _gpus(self, pool: RayPool) -> float:
        if pool.gpus is not None:
            return pool.gpus
        if self._config.gpus is not None:
            return self._config.gpus
        return 1.0 if self._gpus_there else 0.0


def pools_of(config: RayConfig) -> dict[str, RayPool]:
    """The pools of the configuration, or one that holds the whole cluster."""
    return dict(config.pools) or {
        "cluster": RayPool(resources=config.resources, accelerator=config.accelerator, slots=None)
    }


def _elsewhere(job: Job) -> Job:
    """The job on a machine that does not see the run directory: its files go to that machine's temporary folder."""
    folder = Path("/tmp") / "merit-jobs" / hashlib.sha256(str(job.output).encode()).hexdigest()[:16]
    return replace(job, done=folder / "DONE", progress=folder / "progress.json", output=folder / "output.txt")
