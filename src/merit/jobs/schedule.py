"""Which waiting job starts on which free slot, when machines differ in speed.

Jobs are placed longest first, each where it would *end* soonest (Graham's list scheduling on related machines). So a
slow slot stays idle when waiting for a fast one is quicker, and the longest branches go to the fastest machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """Room for one job at a time.

    Attributes:
        pool: the machines that it belongs to.
        index: which of the pool's slots.
        speed: work a unit of time, relative to the other pools.
    """

    pool: str
    index: int
    speed: float = 1.0


def place(waiting: Sequence[float], busy: Sequence[float | None], speeds: Sequence[float]) -> list[tuple[int, int]]:
    """The jobs to start now, as pairs (position in `waiting`, position of a slot), longest first.

    Args:
        waiting: work left of each waiting job.
        busy: work left of the job that runs on each slot; None where the slot is free.
        speeds: of the slots.
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
    """A running job that would end sooner on a faster free slot, as (its slot, the free slot); None if none would.

    Call it when nothing waits. What a move costs is the work since the last checkpoint, `loss` at most; it must win a
    tenth of the time that is left, since estimates are rough.
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
