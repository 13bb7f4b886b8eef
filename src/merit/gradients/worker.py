"""Spreads the gradients of a mixture over devices: worker jobs that share its datasets, the longest first."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from merit.base.files import write_text
from merit.base.progress import FileProgress
from merit.context import RunContext
from merit.jobs.job import Job
from merit.jobs.process import die_with_parent
from merit.run.events import stage_events
from merit.workers import open_as_worker, run_workers, worker_job

if TYPE_CHECKING:
    from merit.gradients.collect import Measurement


def spread(context: RunContext, size: int) -> None:
    """Measures `size` examples of every dataset with as many workers as there are devices.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    job = partial(_job, context, size)
    run_workers(context, len(context.mixture.names), job)


def run_worker(root: Path, worker: int, size: int | None, precision: str | None = None) -> None:
    """The job: measures datasets until none is left that no other worker has in hand.

    Raises:
        InputError: as `open_as_worker`, or as `collect_sketches`.
    """
    from merit.gradients.collect import Collector

    die_with_parent()
    context = open_as_worker(root, precision)
    size = size or context.config.calibration.examples
    job = _job(context, size, worker)
    context.progress = FileProgress(job.progress)
    with stage_events(context.run.events, f"gradients worker {worker}") as facts:
        facts |= {"datasets": Collector(measurement(context)).share(size)}
    write_text(job.done, "")


def measurement(context: RunContext) -> Measurement:
    """What the gradients of a run are measured with."""
    from merit.gradients.collect import Measurement
    from merit.models.loading import load_model, pick_precision

    model = context.measured_model
    return Measurement(
        context.run,
        context.mixture,
        lambda: load_model(
            model.path,
            trust_remote_code=model.trust_remote_code,
            freeze=context.config.model.freeze if model == context.model else None,
        ),
        context.config.calibration,
        model.fingerprint,
        pick_precision(context.config.train.precision),
        context.progress,
    )


def _job(context: RunContext, size: int, worker: int) -> Job:
    arguments = ("conflict", str(context.run.root.resolve()), "--examples", str(size))
    return worker_job(context, context.run.gradients / "jobs", "gradients", "tok", worker, arguments)
