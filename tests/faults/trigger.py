"""Faults that strike at a chosen moment: the n-th time that a stage touches its run directory.

An audit hook sees every file that Python opens to write, renames, removes or makes, with no wrapper around anything.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.rmtree", "os.rmdir")
_YEAR = 365 * 86400.0


@dataclass(frozen=True)
class Moment:
    """A moment of a run: `stage` in words of events.jsonl, and how often it has touched the run directory; 0 is its
    beginning."""

    stage: str
    touch: int = 0


@dataclass(frozen=True)
class Strike:
    """What happens at a moment, by name of `ACTIONS`; it happens once in a run, whichever of its processes is there."""

    moment: Moment
    action: str
    argument: float = 0


def install(run: Path, strike: Strike | None = None, record: Path | None = None) -> None:
    """Arms this process, and the jobs that it will fork.

    Args:
        record: file that gets a line a touch: the stage, and what was touched.
    """
    from merit.run import events

    root = str(run.resolve())
    real, state = events.append_event, _State()
    notes = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if record else None
    fired = run.with_name("fired")  # outside of the run: tells the campaign, and the other processes

    def touch(what: str) -> None:
        if notes is not None:
            os.write(notes, f"{state.stage}\t{state.touches}\t{what}\n".encode())
        if strike is None or strike.moment != Moment(state.stage, state.touches) or state.fired or fired.exists():
            return
        state.fired = True
        fired.touch()
        ACTIONS[strike.action](strike, root)

    def append_event(path: Path, event: str, **fields: Any) -> None:
        state.stage = ""
        real(path, event, **fields)
        if event == "start":
            # The preparation is a run of its own inside, whose branches have the names of the run's.
            stage, inner = fields["stage"], Path(path).parent.name == "prepare"
            state.stage, state.touches = stage.replace("merit", "prepare") if inner else stage, 0
            touch("start")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not state.stage or state.inside or event not in _TOUCHES or not _writes(event, arguments):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if event == "os.mkdir" and Path(path).is_dir():  # it is there: to fail to make it is no harm to anybody
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(root):
            state.touches += 1
            state.inside = True  # what an action does is no touch of the run's
            try:
                touch(f"{event} {os.fspath(path)[len(root) :]}")
            finally:
                state.inside = False

    os.register_at_fork(after_in_child=lambda: setattr(state, "stage", ""))  # a job's first stage is its own
    events.append_event = append_event
    sys.addaudithook(hook)


@dataclass
class _State:
    stage: str = ""
    touches: int = 0
    fired: bool = False
    inside: bool = False


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    return event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))


def _signal(number: int) -> Callable[[Strike, str], None]:
    return lambda strike, root: os.kill(os.getpid(), number)


def _raise(error: BaseException) -> Callable[[Strike, str], None]:
    def act(strike: Strike, root: str) -> None:
        raise error

    return act


def _errno(number: int) -> Callable[[Strike, str], None]:
    def act(strike: Strike, root: str) -> None:
        raise OSError(number, os.strerror(number), root)

    return act


def _limit_memory(strike: Strike, root: str) -> None:
    """Address space: what is used now and `argument` MiB more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(strike.argument * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _fill_disk(strike: Strike, root: str) -> None:
    """Leaves `argument` KiB of the run's disk, which is a small one of its own."""
    disk = os.statvfs(root)
    free = disk.f_bavail * disk.f_frsize - int(strike.argument * 1024)
    handle = os.open(Path(root).with_name("filler"), os.O_CREAT | os.O_WRONLY)
    if free > 0:
        os.posix_fallocate(handle, 0, free)
    os.close(handle)


def _set_clock(strike: Strike, root: str) -> None:
    """The clock of the wall jumps by `argument` years, for this process and its jobs."""
    wall, shift = time.time, strike.argument * _YEAR
    time.time = lambda: wall() + shift


def _end_of_all(strike: Strike, root: str) -> None:
    """As when the machine goes down: this process and the one that started it."""
    if strike.moment.stage.startswith("train "):
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


ACTIONS: dict[str, Callable[[Strike, str], None]] = {
    "SIGKILL": _signal(signal.SIGKILL),
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGINT": _signal(signal.SIGINT),
    "end of all": _end_of_all,
    "note": lambda strike, root: None,
    "pause": _signal(signal.SIGSTOP),
    "no memory": _raise(MemoryError()),
    "ENOSPC": _errno(errno.ENOSPC),
    "EROFS": _errno(errno.EROFS),
    "EIO": _errno(errno.EIO),
    "memory limit": _limit_memory,
    "full disk": _fill_disk,
    "clock": _set_clock,
}
