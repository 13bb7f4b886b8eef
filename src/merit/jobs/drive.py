"""The loop that all engines share: it places jobs on slots, starts them, watches them and starts them again.

It sees an engine through `Backend`, which also has the clock, so a simulated fleet runs the same code as a real one.
Machines may differ in speed. Jobs are placed longest first, each where it would *end* soonest (Graham's list scheduling
on related machines): a slow slot stays idle if waiting for a fast one is quicker.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from merit.base.errors import StageError
from merit.base.progress import SILENT, Bar, Progress
from merit.jobs.job import End, Failure, Job, JobRecord, failed_jobs

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """An engine, reduced to what the loop needs."""

    engine: str

    def slots(self) -> Sequence[Slot]:
        """The slots that can be used now. If a slot disappears, its job is lost: `poll` says so."""

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        """Starts jobs, all at once where the engine prefers that."""

    def poll(self, job: Job) -> End | None:
        """How the job ended; None while it is queued or runs. It answers once for each start."""

    def state(self, job: Job) -> dict[str, Any]:
        """{"done", "total", "note"} of a started job; empty if unknown."""

    def about(self, job: Job) -> tuple[str, str]:
        """The engine's id of a started job, and where it runs."""

    def end(self, job: Job) -> None:
        """Stops a running job, and returns when it has stopped."""

    def close(self, cancel: bool) -> None:
        """Disconnects from the engine. `cancel`: also stop jobs that could go on without this process."""

    def pause(self) -> None:
        """Waits a moment."""

    def now(self) -> float:
        """Seconds, on the engine's clock."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a job is started again, and what the loop does between polls.

    Attributes:
        retries: how many failures of its own a job survives.
        preemption_retries: how many preemptions and lost machines it survives.
        checkpoint_seconds: the most work that a move to another machine loses.
        stop: called between polls; if it returns a reason, all jobs end.
        look: fetches a job's progress, where machines share no disk.
        fetch: fetches a job's result after each start; False if there is none.
    """

    retries: int = 1
    preemption_retries: int = 100
    checkpoint_seconds: float = 600.0
    stop: Callable[[], str | None] = lambda: None
    look: Callable[[Job], None] = lambda _: None
    fetch: Callable[[Job], bool] = lambda _: False


@dataclass
class _Running:
    job: Job
    slot: Slot
    bar: Bar
    stack: ExitStack
    since: float
    first: float | None = None  # share done at this start's first report
    share: float = 0.0
    total: float = 1.0


@dataclass
class _Tally:
    starts: int = 0
    died: int = 0
    lost: int = 0
    share: float = 0.0


@dataclass
class Drive:
    """One set of jobs on one engine."""

    backend: Backend
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    progress: Progress = SILENT
    running: list[_Running] = field(default_factory=list)

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs all jobs to their end; see `Executor.run`."""
        waiting = sorted(jobs, key=lambda job: -job.weight)
        self.tally = {job.name: _Tally() for job in waiting}
        failed: list[Failure] = []
        cancel = False
        try:
            while waiting or self.running:
                self._start(waiting)
                self._move(waiting)
                self.backend.pause()
                reason = self.policy.stop()
                if reason is not None:
                    cancel = True
                    raise StageError(reason)
                for item in list(self.running):
                    self._look(item)
                    end = self.backend.poll(item.job)
                    if end is not None:
                        self._ended(item, end, waiting, failed)
        finally:
            for item in self.running:
                item.stack.close()
            self.backend.close(cancel)
            if cancel:
                for item in self.running:
                    self._note(item.job, "cancelled")
        if failed:
            raise failed_jobs(failed)

    def _start(self, waiting: list[Job]) -> None:
        if not waiting:
            return
        slots = self.backend.slots()
        chosen = place(
            [self._left(job) for job in waiting], [self._busy(slot) for slot in slots], [slot.speed for slot in slots]
        )
        self._begin([(waiting[job], slots[slot]) for job, slot in chosen])
        for job, _ in sorted(chosen, reverse=True):
            del waiting[job]

    def _move(self, waiting: list[Job]) -> None:
        """Moves a straggler from a slow machine to a faster one that is idle."""
        if waiting:
            return
        slots = self.backend.slots()
        on = {item.slot: item for item in self.running}
        loss = [self._loss(on[slot]) if slot in on else 0.0 for slot in slots]
        found = move([self._busy(slot) for slot in slots], [slot.speed for slot in slots], loss)
        if found is not None:
            item = on[slots[found[0]]]
            _log.info("%s moves from %s to %s", item.job.name, item.slot.pool, slots[found[1]].pool)
            self._drop(item)
            self.backend.end(item.job)
            self._begin([(item.job, slots[found[1]])])

    def _begin(self, placed: list[tuple[Job, Slot]]) -> None:
        if not placed:
            return
        self.backend.start(placed)
        for job, slot in placed:
            stack = ExitStack()
            bar = stack.enter_context(self.progress.bar(job.name, total=1, unit=job.unit))
            self.running.append(_Running(job, slot, bar, stack, self.backend.now()))
            self.tally[job.name].starts += 1
            self._note(job, "running")

    def _look(self, item: _Running) -> None:
        self.policy.look(item.job)
        state = self.backend.state(item.job)
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            item.share = min(1.0, state["done"] / state["total"])
            item.total = state["total"]
            item.first = item.share if item.first is None else item.first
            self.tally[item.job.name].share = item.share
            item.bar.update(state["done"], total=state["total"], note=state.get("note"))

    def _ended(self, item: _Running, end: End, waiting: list[Job], failed: list[Failure]) -> None:
        job, tally = item.job, self.tally[item.job.name]
        if end.kind != "done" and self.policy.fetch(job):
            end = End("done", end.code)
        if end.kind == "done":
            item.bar.update(item.total, total=item.total)  # the last that it said may be older
        self._drop(item)
        if end.kind == "done":
            self._note(job, "done")
            return
        failure = Failure(job, end)
        if end.kind == "lost":
            tally.lost += 1
            again = tally.lost <= self.policy.preemption_retries
        else:
            tally.died += 1
            again = failure.may_pass and tally.died <= self.policy.retries
        if again:
            what = "lost its machine" if end.kind == "lost" else "died"
            _log.warning("%s %s (%s); it starts again and resumes", job.name, what, failure.reason)
            waiting.insert(0, job)
            self._note(job, "queued", failure.reason)
        else:
            failed.append(failure)
            self._note(job, "cancelled" if end.kind == "cancelled" else "failed", failure.reason)

    def _drop(self, item: _Running) -> None:
        item.stack.close()
        self.running.remove(item)

    def _left(self, job: Job) -> float:
        return job.weight * (1 - self.tally[job.name].share)

    def _busy(self, slot: Slot) -> float | None:
        return next((item.job.weight * (1 - item.share) for item in self.running if item.slot == slot), None)

    def _loss(self, item: _Running) -> float:
        """The work that a job does between checkpoints, at its own pace; all its work while the pace is unknown."""
        done = item.share - (item.first or 0.0)
        seconds = self.backend.now() - item.since
        return item.job.weight * (done / seconds * self.policy.checkpoint_seconds if done > 0 and seconds > 0 else 1.0)

    def _note(self, job: Job, state: Any, said: str = "") -> None:
        if job.record is not None:
            ident, where = self.backend.about(job)
            tally = self.tally[job.name]
            JobRecord(self.backend.engine, state, ident, where, tally.starts, said).save(job.record)


@dataclass(frozen=True)
class DrivenExecutor:
    """An executor that drives a backend, made anew at each call of `run`."""

    backend: Callable[[], Backend]
    policy: RetryPolicy

    def run(self, jobs: Sequence[Job], progress: Progress = SILENT) -> None:
        """Runs those jobs to their end that are not done; see `Executor.run`."""
        todo = [job for job in jobs if not job.done.exists()]
        if todo:
            Drive(self.backend(), self.policy, progress).run(todo)


@dataclass(frozen=True)
class Slot:
    """Room for one job at a time.

    Attributes:
        pool: the group of machines that it belongs to.
        index: its number in the pool.
        speed: work per unit of time, relative to the other pools.
    """

    pool: str
    index: int
    speed: float = 1.0


def place(waiting: Sequence[float], busy: Sequence[float | None], speeds: Sequence[float]) -> list[tuple[int, int]]:
    """The jobs to start now, as pairs (position in `waiting`, position of a slot), longest first.

    Args:
        waiting: the work left in each waiting job.
        busy: the work left in the job that runs on each slot; None if the slot is free.
        speeds: the speed of each slot.
    """
    ends = [0.0 if left is None else left / speed for left, speed in zip(busy, speeds, strict=True)]
    free = {slot for slot, left in enumerate(busy) if left is None}
    started = []
    for job in sorted(range(len(waiting)), key=lambda job: -waiting[job]):
        if not free:
            break
        best = min(range(len(ends)), key=lambda slot: (ends[slot] + waiting[job] / speeds[slot], ends[slot]))
        ends[best] += waiting[job] / speeds[best]
        if best in free:
            free.remove(best)
            started.append((job, best))
    return started


def move(busy: Sequence[float | None], speeds: Sequence[float], loss: Sequence[float]) -> tuple[int, int] | None:
    """A running job that would end sooner on a faster free slot, as (its slot, the free slot); None if there is none.

    Call it when no job waits. A move costs the work since the last checkpoint, at most `loss`. Estimates are rough, so
    it must save a tenth of the time that is left.
    """
    best: tuple[float, int, int] | None = None
    for free in (slot for slot, left in enumerate(busy) if left is None):
        for slot, left in enumerate(busy):
            if left is None or speeds[free] <= speeds[slot]:
                continue
            stays = left / speeds[slot]
            won = stays - (left + loss[slot]) / speeds[free]
            if won > 0.1 * stays and (best is None or stays > best[0]):
                best = (stays, slot, free)
    return best[1:] if best else None
