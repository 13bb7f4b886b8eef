"""Distributes the pieces of a stage over devices, of this machine or of a cluster: one worker job per device.

Each worker takes the next piece that no other has taken, so nothing is planned and no worker waits. If a worker dies,
its piece is lost, and another worker does it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from merit.base.errors import InputError
from merit.base.machine import local_slots, merit_command
from merit.config.launch import LaunchConfig
from merit.context import RunContext
from merit.jobs.drive import RetryPolicy
from merit.jobs.engine import engine_named, make_executor
from merit.jobs.job import Job


def run_workers(context: RunContext, pieces: int, job: Callable[[int], Job]) -> None:
    """Starts one worker per device (this machine's devices, or `launch.parallel` on a cluster) and waits for all.

    It does nothing if there would be only one worker, since this process can do the work, or if the cluster's machines
    do not see the run directory.

    Args:
        pieces: how many pieces the workers share.
        job: the job of worker number n.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    launch = context.config.launch
    here = engine_named(launch.engine).on_this_machine
    devices = local_slots(launch.parallel) if here else launch.parallel or 1
    workers = min(devices, pieces)
    if workers < 2 or (launch.store is not None and not here):
        return
    _run(context, launch, [job(worker) for worker in range(workers)])


def run_jobs(context: RunContext, jobs: Sequence[Job]) -> None:
    """Starts jobs that need a whole device each, and waits for all. Where the cluster's machines do not see the run
    directory, they run here.

    Raises:
        InputError, StageError: a job failed for good.
    """
    launch = context.config.launch
    if launch.store is not None and not engine_named(launch.engine).on_this_machine:
        launch = launch.model_copy(update={"engine": "local"})
    if engine_named(launch.engine).on_this_machine:  # `parallel` may put several jobs on one GPU
        launch = launch.model_copy(update={"parallel": None})
    _run(context, launch, jobs)


def _run(context: RunContext, launch: LaunchConfig, jobs: Sequence[Job]) -> None:
    for item in jobs:
        item.done.unlink(missing_ok=True)
    policy = RetryPolicy(retries=launch.retries, preemption_retries=launch.preemption_retries)
    make_executor(launch, policy, context.run.engine).run(jobs, context.progress)


def worker_job(context: RunContext, folder: Path, name: str, unit: str, worker: int, arguments: Sequence[str]) -> Job:
    """`merit ARGUMENTS --worker n`, with its marker, progress and output in `folder`.

    This machine decides what `precision: auto` means for all workers: their results must be comparable, and are stored
    under this precision.
    """
    from merit.models.loading import pick_precision

    options = ("--worker", str(worker), "--precision", pick_precision(context.config.train.precision))
    return Job(
        name=f"{name} worker {worker}",
        command=tuple(merit_command(*arguments, *options)),
        done=folder / f"{worker:02d}.done",
        progress=folder / f"{worker:02d}.json",
        output=folder / f"{worker:02d}.txt",
        unit=unit,
    )


def open_as_worker(root: Path, precision: str | None) -> RunContext:
    """The run, with the precision of the process that distributes the work.

    Raises:
        InputError: `root` is not a run, or there is no such precision.
    """
    context = RunContext.open(root)
    if precision is not None:
        if precision not in ("bf16", "fp32"):
            raise InputError(f"{precision!r} is neither bf16 nor fp32", field="--precision")
        train = context.config.train.model_copy(update={"precision": precision})
        context.config = context.config.model_copy(update={"train": train})
    return context
