"""Every fault of the campaign."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults import damage
from faults.fault import Expected, Fault, rerun, signalled, struck, tracebacks, two_processes
from faults.mounts import read_only, small_disk
from faults.process import merit
from faults.trigger import Moment, Strike
from faults.world import STAGES, World, digests

_SIGNALS = {"kill -9": "SIGKILL", "SIGTERM": "SIGTERM", "SIGINT": "SIGINT"}
_WRITES = ("open ", "os.rename ")  # what a full disk refuses
_CHANGES = (*_WRITES, "os.mkdir ", "os.remove ")  # what a read-only one does


def catalogue(world: World) -> list[Fault]:
    """All that the world has states for, stage by stage."""
    found = [fault for stage in STAGES if stage in world.labels for fault in _of_stage(world, stage)]
    return [*found, *damage.faults(world)]


def one_of_each(faults: list[Fault]) -> list[Fault]:
    """The first of every kind."""
    return list({fault.kind: fault for fault in reversed(faults)}.values())


def in_turns(faults: list[Fault], each: int) -> list[Fault]:
    """One fault of every stage and kind, then another of each, and so on, up to `each`; a cell's are evenly spaced."""
    cells: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        cells.setdefault((fault.stage, fault.kind), []).append(fault)
    counts = [(cell, min(each, len(cell))) for cell in cells.values()]
    chosen = [[cell[len(cell) * i // n] for i in range(n)] for cell, n in counts]
    return [fault for turn in itertools.zip_longest(*chosen) for fault in turn if fault is not None]


def _of_stage(world: World, stage: str) -> Iterator[Fault]:
    for kind, action in _SIGNALS.items():
        for moment, what in _moments(world, stage, 4):
            yield _strike(stage, kind, Strike(moment, action), what)
        for share in (0.25, 0.75):
            yield Fault(
                stage, kind, f"after {share:.0%} of it", partial(signalled, stage=stage, action=action, share=share)
            )
    if stage == "train":
        for moment, what in _moments(world, "train merit 1", 8):
            yield _strike(stage, "kill -9", Strike(moment, "end of all"), f"{what}, run and branch")
    for moment, what in _moments(world, stage, 3):
        yield _strike(stage, "memory", Strike(moment, "no memory"), what)
    for megabytes in (0, 8, 64):
        limit = Strike(Moment(stage), "memory limit", megabytes)
        yield _strike(stage, "memory", limit, f"{megabytes} MiB of address space left")
    for moment, what in _moments(world, stage, 3, _WRITES):
        yield _strike(stage, "disk full", Strike(moment, "ENOSPC"), what)
    for kilobytes in (0, 16, 120):
        full = Strike(Moment(stage), "full disk", kilobytes)
        yield Fault(stage, "disk full", f"{kilobytes} KiB left", partial(_full_disk, stage=stage, strike=full))
    for moment, what in _moments(world, stage, 2, _CHANGES):
        yield _strike(stage, "read-only", Strike(moment, "EROFS"), what)
    yield Fault(stage, "read-only", "the run directory", partial(_read_only, stage=stage))
    for years in (-30, -1, 5):
        yield _strike(stage, "clock", Strike(Moment(stage), "clock", years), f"{years:+d} years")
    yield Fault(stage, "clock", "files from the future", partial(_future, stage=stage))
    for moment, what in _moments(world, stage, 2):
        if moment.stage == stage:
            yield Fault(stage, "two processes", what, partial(two_processes, stage=stage, touch=moment.touch))


def _moments(world: World, stage: str, count: int, kinds: tuple[str, ...] = ("",)) -> list[tuple[Moment, str]]:
    """Up to `count` of the stage's touches, evenly spaced; for training, as many of a branch's."""
    found = []
    for of in (stage, "train merit 1") if stage == "train" else (stage,):
        touches = [(Moment(of, n), what) for of_, n, what in world.touches if of_ == of and what.startswith(kinds)]
        step = max(1.0, len(touches) / count)
        found += [touches[int((i + 0.5) * step)] for i in range(min(count, len(touches)))]
    return found


def _strike(stage: str, kind: str, strike: Strike, what: str) -> Fault:
    where = "" if strike.moment.stage == stage else "in the branch, "
    return Fault(stage, kind, f"{where}{what}", partial(struck, stage=stage, strike=strike))


def _full_disk(world: World, folder: Path, *, stage: str, strike: Strike) -> list[str]:
    with small_disk(folder / "disk") as disk:
        return struck(world, folder, stage, strike, place=disk)


def _read_only(world: World, folder: Path, *, stage: str) -> list[str]:
    (folder / "place").mkdir()
    run = world.place(folder / "place", stage)
    noted = run.exists()
    before = digests(folder / "place")
    with read_only(run if noted else run.parent):
        ended = merit(*world.command(run), log=folder / "struck")
    wrong = Expected({2: "Read-only file system" if not os.geteuid() else "Permission denied"}).unmet(ended)
    if len(ended.lines) != 1:
        wrong.append(f"it said {len(ended.lines)} lines")
    if digests(folder / "place") != before:
        wrong.append("it wrote all the same")
    return wrong + tracebacks(ended, run) + rerun(world, folder, run, noted=noted)


def _future(world: World, folder: Path, *, stage: str) -> list[str]:
    """Every file of the run is dated ten years ahead."""
    run = world.place(folder, stage)
    for path in run.rglob("*"):
        os.utime(path, (2.1e9, 2.1e9))
    return rerun(world, folder, run, noted=run.exists())
