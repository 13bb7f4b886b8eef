"""`merit status` and `merit cancel`: what the branches are doing, by the run's files and the engine's queue."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.base.files import read_json, write_text
from merit.base.locks import is_locked
from merit.jobs.engine import QueuedJob, queue_of
from merit.jobs.job import JobRecord
from merit.run.guard import require_run
from merit.run.layout import BranchDir, RunDir
from merit.train.spec import BranchResult, BranchSpec


@dataclass(frozen=True)
class BranchStatus:
    """One branch.

    Attributes:
        state: planned, queued, running, done, failed, cancelled, or interrupted (no process watches it any more).
        done, total: optimizer steps; 0 of 0 if unknown.
        job: the engine's id of its job.
    """

    method: str
    branch: int
    datasets: list[str]
    state: str
    done: float
    total: float
    note: str
    engine: str
    job: str
    where: str
    attempt: int
    round: int | None = None  # of a branch that is trained in rounds


def run_status(run: RunDir) -> list[BranchStatus]:
    """Every planned branch: the main method's first, then the baselines' by name.

    Raises:
        InputError: this is no run, or no branch is planned yet.
    """
    require_run(run.root)
    branches = branch_folders(run)
    if not branches:
        raise InputError("no branch is planned here yet; `merit train` plans and trains them", file=run.root)
    records = {branch.root: JobRecord.load(branch.job) for branch in branches}
    queue = _queued([record for record in records.values() if record is not None])
    watched = is_locked(run.lock)
    return [_status(branch, records[branch.root], queue, watched=watched) for branch in branches]


def branch_folders(run: RunDir) -> list[BranchDir]:
    """The folders of all planned branches, those of earlier rounds first."""
    homes = [run.root, *sorted(run.baselines.glob("*"))]
    found = [home.glob(below) for home in homes for below in ("rounds/*/branches/*/spec.json", "branches/*/spec.json")]
    return [BranchDir(file.parent) for files in found for file in sorted(files)]


def cancel_run(run: RunDir) -> int:
    """Asks the process that watches the jobs to end them, and takes them out of their engine's queue.

    Returns:
        How many jobs were queued or running.

    Raises:
        InputError: as `run_status`.
    """
    busy = [item for item in run_status(run) if item.state in ("queued", "running")]
    if is_locked(run.lock):
        write_text(run.cancel, f"{os.getpid()}\n")
    for engine in {item.engine for item in busy}:
        if (queue := queue_of(engine)) is not None:
            theirs = [item for item in busy if item.engine == engine]
            queue.cancel(item.job for item in theirs)
            for item in theirs:
                JobRecord(engine, "cancelled", item.job, item.where, item.attempt).save(_folder(run, item).job)
    return len(busy)


def _folder(run: RunDir, item: BranchStatus) -> BranchDir:
    home = run.method(item.method)
    early = None if item.round is None else home.round(item.round).branch(item.branch)
    return early if early is not None and early.spec.is_file() else home.branch(item.branch)


def _queued(records: Sequence[JobRecord]) -> dict[tuple[str, str], QueuedJob]:
    """(engine, job id) → the job in that engine's queue, for all jobs that a queue still knows."""
    found: dict[tuple[str, str], QueuedJob] = {}
    for engine in {record.engine for record in records}:
        ids = [record.id for record in records if record.engine == engine and record.id]
        queue = queue_of(engine)
        if queue is not None and ids and queue.installed():
            with contextlib.suppress(StageError):  # the run's files still tell something
                found |= {(engine, ident): job for ident, job in queue.read(ids).items()}
    return found


def _status(
    branch: BranchDir, record: JobRecord | None, queue: Mapping[tuple[str, str], QueuedJob], *, watched: bool
) -> BranchStatus:
    spec = BranchSpec.load(branch.spec)
    done, total, note = _progress(branch.progress)
    state: str = record.state if record is not None else "planned"
    line = queue.get((record.engine, record.id)) if record is not None else None
    if branch.done.is_file():
        result = BranchResult.load(branch.done)
        state, done, total = "done", result.steps, result.steps
        note = f"{result.supervised_tokens:,} supervised tokens" + (
            f", loss {result.final_loss:.3f}" if result.final_loss is not None else ""
        )
    elif line is not None and not line.over:
        state = "queued" if line.waits else "running"
        title = home.title if record is not None and (home := queue_of(record.engine)) is not None else ""
        note = f"{title}: {line.state.lower()}" + (f" ({line.reason})" if line.waits else f", {note}" if note else "")
    elif state in ("running", "queued") and not watched:
        state = "interrupted"
        note = "run again to resume"
    elif state in ("failed", "cancelled") and record is not None:
        note = record.said
    return BranchStatus(
        method=spec.method,
        branch=spec.branch,
        datasets=[item.name for item in spec.data],
        state=state,
        done=done,
        total=total,
        note=note,
        engine=record.engine if record else "",
        job=record.id if record else "",
        where=(line.nodes if line else "") or (record.where if record else ""),
        attempt=record.attempt if record else 0,
        round=spec.round if spec.train.rounds > 1 else None,
    )


def _progress(path: Path) -> tuple[float, float, str]:
    with contextlib.suppress(InputError, KeyError, TypeError, ValueError):
        state = read_json(path)
        return float(state["done"]), float(state["total"]), str(state.get("note") or "")
    return 0, 0, ""
