"""File locks. The kernel releases them when their process dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from merit.base.files import disk_errors

_POLL_SECONDS = 0.05


@contextlib.contextmanager
def claim(path: Path, *, wait_seconds: float = 0) -> Iterator[bool]:
    """Holds the lock file `path`; yields False if another process still holds it after `wait_seconds`.

    Raises:
        InputError: merit may not write the lock file.
        StageError: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield take(handle, wait_seconds=wait_seconds)
    finally:
        os.close(handle)


def take(handle: int, *, wait_seconds: float = 0) -> bool:
    """Locks an open file until it is closed; False if another process still holds the lock after `wait_seconds`.

    It leaves the file's content alone, which filelock's own `FileLock` would delete.
    """
    deadline = time.monotonic() + wait_seconds
    while not lock_descriptor(handle, blocking=False):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at `path`, on this machine or, if the file system supports it, on another.

    It tries a shared lock, which filelock does not offer. That needs no permission to write, and two processes that
    look at the same time do not take each other for a holder.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
