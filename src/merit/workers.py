"""Spreads the pieces of a stage over devices: one worker job each, on this machine or on a cluster's.

Workers take the next piece that no other has taken, so none is planned and none waits for another. A worker that dies
costs the piece in hand; another one takes it up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from merit.base.errors import InputError
from merit.base.machine import local_slots, merit_command
from merit.context import RunContext
from merit.jobs.drive import RetryPolicy
from merit.jobs.engine import engine_named, make_executor
from merit.jobs.job import Job


def run_workers(context: RunContext, pieces: int, job: Callable[[int], Job]) -> None:
    """Starts as many workers as there are devices, this machine's or `launch.parallel` of a cluster, and returns when
    all have ended. For one it does nothing, since this process is as good a worker; nor where the cluster's machines
    do not see the run directory.

    Args:
        pieces: how many there are to share.
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
    jobs = [job(worker) for worker in range(workers)]
    for item in jobs:
        item.done.unlink(missing_ok=True)
    policy = RetryPolicy(retries=launch.retries, preemption_retries=launch.preemption_retries)
    make_executor(launch, policy, context.run.engine).run(jobs, context.progress)


def worker_job(context: RunContext, folder: Path, name: str, unit: str, worker: int, arguments: Sequence[str]) -> Job:
    """`merit ARGUMENTS --worker n`, with its marker, progress and output in `folder`.

    `precision: auto` is what this machine likes, also on others: what they measure must be comparable, and is looked
    for under this name.
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
    """The run, computed with the precision of the process that shares its work.

    Raises:
        InputError: `root` is no run; no such precision.
    """
    context = RunContext.open(root)
    if precision is not None:
        if precision not in ("bf16", "fp32"):
            raise InputError(f"{precision!r} is neither bf16 nor fp32", field="--precision")
        train = context.config.train.model_copy(update={"precision": precision})
        context.config = context.config.model_copy(update={"train": train})
    return context
