"""One process writes a run at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from merit.errors import InputError
from merit.io import disk_errors
from merit.locks import claim
from merit.run.layout import RunDir

_LOOK_SECONDS = 0.3  # `merit status` holds it for a moment, to see whether it is free


@contextlib.contextmanager
def run_lock(run: RunDir) -> Iterator[None]:
    """Holds the run's lock, and writes this process's id into it.

    Raises:
        InputError: another process holds it; names the process.
    """
    with claim(run.lock, wait_seconds=_LOOK_SECONDS) as mine:
        if not mine:
            owner = run.lock.read_bytes()[:64].decode(errors="replace").strip() or "unknown"
            raise InputError(f"another process (pid {owner}) works on this run; wait for it", file=run.root)
        with disk_errors(run.lock):
            run.lock.write_text(str(os.getpid()), encoding="ascii")
        yield
