"""What a job does about the process that started it."""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from merit.base.errors import StageError
from merit.base.files import disk_errors

_CHECK_SECONDS = 0.5


def die_with_parent(parent: int | None = None) -> None:
    """Ends this job soon after the executor that started it (or process `parent`) is gone, however that died.

    A killed run leaves no branch training in the background, where it would race with the rerun's.
    """
    parent = parent or int(os.environ.get("MERIT_PARENT", "0"))
    if parent:
        # `Thread.start` would wait for ever for a thread that found no memory to begin with.
        _thread.start_new_thread(_watch, (parent,))


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_SECONDS)
    if os.getpgrp() == os.getpid():
        # The executor gave this job a group of its own: whatever it has started ends with it.
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at `path`, here or, where the file system knows, on another machine."""
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


@contextlib.contextmanager
def job_lock(path: Path, *, wait_seconds: float = 30) -> Iterator[None]:
    """Holds the lock of one job's folder; waits for the last moments of an orphaned predecessor.

    Raises:
        StageError: another process still works on it.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StageError(f"{path.parent}: another process works on this job") from None
                time.sleep(_CHECK_SECONDS)
        yield
    finally:
        os.close(handle)
