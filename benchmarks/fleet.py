"""A simulated fleet: branches on five unequal pools of spot machines, scheduled by merit's own loop in virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merit.jobs.drive import Drive, RetryPolicy, Slot
from merit.jobs.job import End, Job

HOUR = 3600.0
CHECKPOINT = 600.0  # seconds between checkpoints
START = 90.0  # from the start of a job to its first step: image, model, data
AWAY = 600.0  # until a preempted machine is replaced
TICK = 30.0
POOLS = {"h100": (4, 3.0), "a100": (6, 2.0), "l40s": (8, 1.0), "v100": (6, 0.5), "t4": (4, 0.25)}  # slots, speed


@dataclass
class _Run:
    job: Job
    slot: Slot
    began: float
    base: float  # work that its checkpoint held when it started


@dataclass
class Fleet:
    """An engine whose clock is a variable. Work is counted in seconds on a machine of speed 1."""

    preemptions: float  # a machine and hour
    seed: int
    engine: str = "simulated"
    clock: float = 0.0
    lost: int = 0
    moved: int = 0
    saved: dict[str, float] = field(default_factory=dict)
    running: dict[str, _Run] = field(default_factory=dict)
    gone: dict[str, End] = field(default_factory=dict)
    away: dict[Slot, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.all = [Slot(name, i, speed) for name, (count, speed) in POOLS.items() for i in range(count)]

    def slots(self) -> Sequence[Slot]:
        return [slot for slot in self.all if self.away.get(slot, 0.0) <= self.clock]

    def start(self, placed: Sequence[tuple[Job, Slot]]) -> None:
        for job, slot in placed:
            self.running[job.name] = _Run(job, slot, self.clock, self.saved.get(job.name, 0.0))

    def poll(self, job: Job) -> End | None:
        if job.name in self.gone:
            return self.gone.pop(job.name)
        if self._work(job.name) >= job.weight:
            del self.running[job.name]
            return End("done", 0)
        return None

    def state(self, job: Job) -> dict[str, Any]:
        if job.name not in self.running:
            return {}
        return {"done": self._work(job.name), "total": job.weight}

    def about(self, job: Job) -> tuple[str, str]:
        return "", ""

    def end(self, job: Job) -> None:
        self.moved += 1
        self._keep(job.name)
        del self.running[job.name]

    def close(self, cancel: bool) -> None:
        self.running.clear()

    def pause(self) -> None:
        ends = [run.began + START + (run.job.weight - run.base) / run.slot.speed for run in self.running.values()]
        step = min([TICK, *(end - self.clock for end in ends if end > self.clock)])
        self.clock += step
        for name, run in list(self.running.items()):
            if self.rng.random() < self.preemptions * step / HOUR and self._work(name) < run.job.weight:
                self.lost += 1
                self._keep(name)
                self.away[run.slot] = self.clock + AWAY
                self.gone[name] = End("lost", None, "preempted")
                del self.running[name]

    def now(self) -> float:
        return self.clock

    def _work(self, name: str) -> float:
        run = self.running[name]
        return min(run.job.weight, run.base + max(0.0, self.clock - run.began - START) * run.slot.speed)

    def _keep(self, name: str) -> None:
        """What the last checkpoint holds."""
        run = self.running[name]
        whole = max(0.0, self.clock - run.began - START) // CHECKPOINT * CHECKPOINT
        self.saved[name] = run.base + whole * run.slot.speed


def simulate(branches: int, preemptions: float, seed: int) -> dict[str, float]:
    """One fleet run; returns its length over the fractional lower bound, and what happened.

    The bound: all work spread over all machines without a gap, nothing preempted, nothing to start; and no branch
    faster than on the fastest machine.
    """
    rng = random.Random(seed)
    nowhere = Path("/nonexistent")
    jobs = [
        Job(f"branch {k}", (), nowhere, nowhere, nowhere, weight=8 * HOUR * rng.uniform(0.7, 1.3))
        for k in range(branches)
    ]
    fleet = Fleet(preemptions, seed)
    Drive(fleet, RetryPolicy(preemption_retries=10_000, checkpoint_seconds=CHECKPOINT)).run(jobs)
    speeds = [slot.speed for slot in fleet.all]
    bound = max(sum(job.weight for job in jobs) / sum(speeds), max(job.weight for job in jobs) / max(speeds))
    return {"over_bound": fleet.clock / bound, "hours": fleet.clock / HOUR, "lost": fleet.lost, "moved": fleet.moved}
