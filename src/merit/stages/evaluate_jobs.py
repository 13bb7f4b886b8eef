"""Spreads the evaluation over devices: worker jobs that share the run's models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from merit.executors.base import Job
from merit.executors.job_side import die_with_parent
from merit.io import write_text
from merit.progress import FileProgress
from merit.run.events import stage_events
from merit.stages.context import RunContext
from merit.stages.measuring import measure
from merit.stages.workers import open_as_worker, run_workers, worker_job


def spread(context: RunContext, models: int) -> None:
    """Measures `models` models with as many workers as there are devices.

    On one CPU that is no quicker than one process with all cores; but it makes the sums of every engine the same.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    run_workers(context, models, partial(_job, context))


def run_worker(root: Path, worker: int, precision: str | None = None) -> None:
    """The job: measures models until none is left that no other worker has in hand.

    Raises:
        InputError: as `open_as_worker`; or the run's models are not merged yet.
    """
    die_with_parent()
    context = open_as_worker(root, precision)
    job = _job(context, worker)
    context.progress = FileProgress(job.progress)
    with stage_events(context.run.events, f"evaluate worker {worker}") as facts:
        facts |= {"models": measure(context, share=True)}
    write_text(job.done, "")


def _job(context: RunContext, worker: int) -> Job:
    arguments = ("evaluate", str(context.run.root.resolve()))
    return worker_job(context, context.run.evaluations / "jobs", "evaluation", "example", worker, arguments)
