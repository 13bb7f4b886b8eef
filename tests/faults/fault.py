"""A fault, and what it means to survive one."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.process import Ended, Merit, merit
from faults.trigger import Moment, Strike, install
from faults.world import World

KINDS = (
    *("kill -9", "SIGTERM", "SIGINT", "memory", "disk full", "read-only", "clock", "two processes"),
    *("truncated", "bit flip"),
)


class Skipped(Exception):
    """The fault cannot be had on this machine; says why."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        stage: the stage that it strikes, or whose file it damages.
        detail: what tells it from others of its stage and kind.
        inflict: does it in an empty folder, and returns what was lost; empty when the run survives. Raises `Skipped`.
    """

    stage: str
    kind: str
    detail: str
    inflict: Callable[[World, Path], list[str]]

    def __str__(self) -> str:
        return f"{self.stage}: {self.kind}, {self.detail}"


@dataclass(frozen=True)
class Expected:
    """How a struck run may end: exit code → what its last line holds. 0 needs no line."""

    ends: dict[int, str]

    def unmet(self, ended: Ended) -> list[str]:
        last = ended.lines[-1] if ended.lines else ""
        if ended.code in self.ends and self.ends[ended.code].lower() in last.lower():
            return []
        return [f"it ended with {ended.code} and the line {last[:200]!r}"]


AGAIN = "run again to resume"
BY_ACTION = {
    "SIGKILL": Expected({-signal.SIGKILL: ""}),
    "SIGTERM": Expected({143: "ended by SIGTERM; run the same command again to resume"}),
    "SIGINT": Expected({130: "interrupted; run the same command again to resume"}),
    "no memory": Expected({1: "memory"}),
    # 127: the C library itself gives up where a thread's own variables find no room.
    "memory limit": Expected({0: "", 1: "memory", 127: "cannot allocate memory"}),
    "ENOSPC": Expected({1: "the disk is full; free some space and run again to resume"}),
    "full disk": Expected({0: "", 1: "the disk is full; free some space and run again to resume"}),
    "EROFS": Expected({2: "Read-only file system"}),
    "clock": Expected({0: ""}),
    "end of all": Expected({-signal.SIGKILL: ""}),
}


def struck(world: World, folder: Path, stage: str, strike: Strike, *, place: Path | None = None) -> list[str]:
    """Strikes a run that is at the beginning of `stage`, and runs it again.

    Args:
        place: where the run shall lie, if not in `folder`.
    """
    run = world.place(place or folder, stage)
    noted = run.exists()
    ended = merit(*world.command(run), log=folder / "struck", prepare=lambda: install(run, strike))
    wrong = BY_ACTION[strike.action].unmet(ended)
    if strike.moment.stage.startswith("train ") and not ended.code:
        wrong = []  # a job that dies is started again
    if not run.with_name("fired").exists():
        wrong.append("it never struck")
    run.with_name("filler").unlink(missing_ok=True)
    return wrong + tracebacks(ended, run) + rerun(world, folder, run, noted=noted)


def rerun(
    world: World, folder: Path, run: Path, *, noted: bool = True, times: int = 1, but: Sequence[str] = ()
) -> list[str]:
    """Runs it again, up to `times`, and says what is not as in an undisturbed run; `but` for some files."""
    wrong = []
    for _ in range(times):
        ended = merit(*world.command(run), log=folder / "rerun")
        wrong += tracebacks(ended, run)
        if not ended.code:
            break
        if len(ended.lines) < 1:
            wrong.append("it said nothing")
    else:
        last = ended.lines[-1] if ended.lines else ""
        wrong.append(f"the rerun ended with {ended.code} and the line {last[:200]!r}")
    return wrong + world.wrong(run, noted=noted, but=but)


def tracebacks(ended: Ended, run: Path) -> list[str]:
    """Where a person would see one."""
    texts = {"on the terminal": ended.said}
    for file in run.rglob("output.txt"):
        texts[f"in {file.relative_to(run)}"] = file.read_text(encoding="utf-8", errors="replace")
    return [
        f"a traceback {where}: {text.partition('Traceback')[2].strip()[-300:]!r}"
        for where, text in texts.items()
        if "Traceback" in text
    ]


def signalled(world: World, folder: Path, stage: str, action: str, share: float) -> list[str]:
    """Sends a signal from outside when `share` of the stage's time has passed."""
    run = world.place(folder, stage)
    noted, fired = run.exists(), run.with_name("fired")
    process = Merit(
        *world.command(run), log=folder / "struck", prepare=lambda: install(run, Strike(Moment(stage), "note"))
    )
    deadline = time.monotonic() + 300
    while not fired.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(share * world.seconds[stage])
    process.send(getattr(signal, action))
    ended = process.end()
    if not ended.code:
        raise Skipped("the run was faster than the signal")
    wrong = BY_ACTION[action].unmet(ended)
    return wrong + tracebacks(ended, run) + rerun(world, folder, run, noted=noted)


def two_processes(world: World, folder: Path, stage: str, touch: int) -> list[str]:
    """Stops a run in the middle, starts another one on the same directory, and lets the first go on."""
    run = world.place(folder, stage)
    noted = run.exists()
    pause = Strike(Moment(stage, touch), "pause")
    first = Merit(*world.command(run), log=folder / "first", prepare=lambda: install(run, pause))
    if not first.stopped():
        return [f"it never stopped: {first.end().said[-200:]!r}"]
    second = merit(*world.command(run), log=folder / "second")
    reader = merit("report", run, log=folder / "reader")
    first.send(signal.SIGCONT)
    ended = first.end()
    wrong = Expected({2: f"another process (pid {first.pid}) works on this run"}).unmet(second)
    if len(second.lines) != 1:
        wrong.append(f"the second said {len(second.lines)} lines")
    wrong += Expected({0: ""}).unmet(reader)
    wrong += Expected({0: ""}).unmet(ended)
    return wrong + tracebacks(ended, run) + tracebacks(reader, run) + world.wrong(run, noted=noted)
