"""Spreads the gradients of a mixture over devices: one worker job each, on this machine or on a cluster's.

Workers take the next dataset that no other has taken, longest first, so none is planned and none waits for another. A
worker that dies costs the dataset in hand; another one takes it up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.config.calibration import CalibrationConfig
from merit.data.mixture import Mixture
from merit.executors.base import Job
from merit.executors.drive import Rules
from merit.executors.job_side import die_with_parent
from merit.executors.local import local_slots
from merit.executors.make import make_executor
from merit.io import write_text
from merit.progress import FileProgress, Progress
from merit.run.events import stage_events
from merit.run.layout import RunDir
from merit.stages.context import RunContext

if TYPE_CHECKING:
    from merit.models.loading import Precision


def spread(context: RunContext, size: int) -> None:
    """Measures `size` examples of every dataset with as many workers as there are devices: this machine's, or
    `launch.parallel` of a cluster. With one it does nothing, since this process is as good a worker; nor where the
    cluster's machines do not see the run directory.

    Raises:
        InputError, StageError: a worker failed for good.
    """
    launch = context.config.launch
    devices = local_slots(launch.parallel) if launch.engine == "local" else launch.parallel or 1
    workers = min(devices, len(context.mixture.names))
    if workers < 2 or (launch.store is not None and launch.engine != "local"):
        return
    jobs = [_job(context.run, worker, size) for worker in range(workers)]
    for job in jobs:
        job.done.unlink(missing_ok=True)
    rules = Rules(retries=launch.retries, losses=launch.losses)
    make_executor(launch, rules, context.run.engine).run(jobs, context.progress)


def run_worker(root: Path, worker: int, size: int | None) -> None:
    """The job: measures datasets until none is left that no other worker has in hand.

    Raises:
        InputError: `root` is no run; or as `collect_sketches`.
    """
    from merit.gradients.collect import Collector

    die_with_parent()
    context = RunContext.open(root)
    size = size or context.config.calibration.examples
    job = _job(context.run, worker, size)
    context.progress = FileProgress(job.progress)
    with stage_events(context.run.events, f"gradients worker {worker}") as facts:
        facts |= {"datasets": Collector(*measurement(context)).share(size)}
    write_text(job.done, "")


def measurement(
    context: RunContext,
) -> tuple[RunDir, Mixture, Callable[[], Any], CalibrationConfig, str, Precision, Progress]:
    """What the gradients of a run are measured with: the first arguments of `collect_sketches`."""
    from merit.models.loading import load_model, pick_precision

    model = context.measured_model
    return (
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


def _job(run: RunDir, worker: int, size: int) -> Job:
    folder = run.gradients / "jobs"
    command = (
        sys.executable,
        "-m",
        "merit",
        "conflict",
        str(run.root.resolve()),
        "--worker",
        str(worker),
        "--examples",
    )
    return Job(
        name=f"gradients worker {worker}",
        command=(*command, str(size)),
        done=folder / f"{worker:02d}.done",
        progress=folder / f"{worker:02d}.json",
        output=folder / f"{worker:02d}.txt",
    )
