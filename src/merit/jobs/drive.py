"""The loop that all engines share: place, start, watch, start again.

It sees an engine through `Backend`, which also has the clock: a simulated fleet runs the same code as a real one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from merit.base.errors import StageError
from merit.base.logging import get_logger
from merit.base.progress import SILENT, Bar, Progress
from merit.jobs.failure import Failure, failed_jobs
from merit.jobs.job import End, Job
from merit.jobs.record import JobRecord
from merit.jobs.schedule import Slot, move, place

_log = get_logger(__name__)


class Backend(Protocol):
    """An engine, reduced to what the loop needs."""

    engine: str

    def slots(self) -> Sequence[Slot]:
        """The slots that can be used now. One that goes takes its job along: `poll` says `lost`."""

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        """Starts jobs; several at once where the engine likes it so."""

    def poll(self, job: Job) -> End | None:
        """How the job ended; None while it is queued or runs. Told once for each start."""

    def state(self, job: Job) -> dict[str, Any]:
        """{"done", "total", "note"} of a started job; empty if unknown."""

    def about(self, job: Job) -> tuple[str, str]:
        """The engine's id of a started job, and where it is."""

    def end(self, job: Job) -> None:
        """Ends a running job, and returns when it is gone."""

    def close(self, cancel: bool) -> None:
        """Lets go of the engine. `cancel`: end what still runs, even where jobs can go on without us."""

    def pause(self) -> None:
        """Waits a moment."""

    def now(self) -> float:
        """Seconds, on the engine's clock."""


@dataclass(frozen=True)
class Rules:
    """What the loop does about trouble.

    Attributes:
        retries: how often a job that died is started again.
        losses: how often a job whose machine went away is.
        checkpoint_seconds: what moving a job to another machine costs at most.
        stop: asked between polls; a reason ends everything.
        look: brings a job's progress here, where machines share no disk.
        fetch: brings what a job made, when a start of it has ended; False if it made nothing.
    """

    retries: int = 1
    losses: int = 100
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
    first: float | None = None  # share done when this start was first heard of
    share: float = 0.0


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
    rules: Rules = field(default_factory=Rules)
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
                reason = self.rules.stop()
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
        """Hands a straggler on a slow machine to a faster one that has nothing to do any more."""
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
        self.rules.look(item.job)
        state = self.backend.state(item.job)
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            item.share = min(1.0, state["done"] / state["total"])
            item.first = item.share if item.first is None else item.first
            self.tally[item.job.name].share = item.share
            item.bar.update(state["done"], total=state["total"], note=state.get("note"))

    def _ended(self, item: _Running, end: End, waiting: list[Job], failed: list[Failure]) -> None:
        job, tally = item.job, self.tally[item.job.name]
        if end.kind != "done" and self.rules.fetch(job):
            end = End("done", end.code)
        self._drop(item)
        if end.kind == "done":
            self._note(job, "done")
            return
        failure = Failure(job, end)
        if end.kind == "lost":
            tally.lost += 1
            again = tally.lost <= self.rules.losses
        else:
            tally.died += 1
            again = failure.may_pass and tally.died <= self.rules.retries
        if again:
            what = "lost its machine" if end.kind == "lost" else "died"
            _log.warning("%s %s (%s); it starts again and resumes", job.name, what, failure.reason)
            waiting.insert(0, job)
            self._note(job, "queued", failure.reason)
        else:
            failed.append(failure)
            self._note(job, "failed", failure.reason)

    def _drop(self, item: _Running) -> None:
        item.stack.close()
        self.running.remove(item)

    def _left(self, job: Job) -> float:
        return job.weight * (1 - self.tally[job.name].share)

    def _busy(self, slot: Slot) -> float | None:
        return next((item.job.weight * (1 - item.share) for item in self.running if item.slot == slot), None)

    def _loss(self, item: _Running) -> float:
        """Work that a checkpoint interval is worth at the job's own pace; all of it if the pace is not known yet."""
        done = item.share - (item.first or 0.0)
        seconds = self.backend.now() - item.since
        return item.job.weight * (done / seconds * self.rules.checkpoint_seconds if done > 0 and seconds > 0 else 1.0)

    def _note(self, job: Job, state: Any, said: str = "") -> None:
        if job.record is not None:
            ident, where = self.backend.about(job)
            tally = self.tally[job.name]
            JobRecord(self.backend.engine, state, ident, where, tally.starts, said).save(job.record)
