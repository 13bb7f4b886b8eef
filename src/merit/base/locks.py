"""One process writes a run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import disk_errors
from merit.run.layout import RunDir

_LOOK_SECONDS = 0.3  # `merit status` holds it for a moment, to see whether it is free


@contextlib.contextmanager
def run_lock(run: RunDir) -> Iterator[None]:
    """Holds the run's lock; the kernel releases it when the process dies, however it dies.

    Raises:
        InputError: another process holds it; names the process.
    """
    with disk_errors(run.lock):
        run.state.mkdir(parents=True, exist_ok=True)
        handle = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not (_taken(handle) or _taken(handle, after=_LOOK_SECONDS)):
            owner = os.read(handle, 64).decode(errors="replace").strip() or "unknown"
            raise InputError(f"another process (pid {owner}) works on this run; wait for it", file=run.root)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _taken(handle: int, *, after: float = 0.0) -> bool:
    time.sleep(after)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def claim(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock file `path`; yields False if another process does and `wait` is off.

    The lock goes with its process, however that ends: what a dead worker had in hand is free again at once.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
