"""What a job does about the process that started it."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from merit.base.errors import StageError
from merit.base.locks import claim

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


@contextlib.contextmanager
def job_lock(path: Path, *, wait_seconds: float = 30) -> Iterator[None]:
    """Holds the lock of one job's folder; waits for the last moments of an orphaned predecessor.

    Raises:
        StageError: another process still works on it.
    """
    with claim(path, wait_seconds=wait_seconds) as mine:
        if not mine:
            raise StageError(f"{path.parent}: another process works on this job")
        yield
