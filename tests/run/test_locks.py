"""Locks of files: who holds one, how long others wait, and that looking disturbs nobody."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from merit.base.errors import InputError
from merit.base.locks import claim, is_locked, take


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "new" / "piece.lock"
    assert not is_locked(path)
    with claim(path) as mine, claim(path) as second:
        assert (mine, second, is_locked(path)) == (True, False, True)
    assert not is_locked(path)


def test_a_waiter_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "piece.lock"
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with claim(path):
            held.set()
            free.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    start = time.monotonic()
    with claim(path, wait_seconds=0.2) as mine:
        assert not mine
    assert time.monotonic() - start >= 0.2
    threading.Timer(0.2, free.set).start()
    with claim(path, wait_seconds=60) as mine:
        assert mine
    holder.join()


def test_looking_is_not_holding(tmp_path: Path) -> None:
    """Two `merit status` at once on a free run both say that it is free."""
    path = tmp_path / "run.lock"
    path.touch()
    with path.open("rb") as first:
        fcntl.flock(first, fcntl.LOCK_SH)
        assert not is_locked(path)


def test_a_lock_leaves_the_content_of_its_file(tmp_path: Path) -> None:
    """The journal of a merge is its own lock."""
    path = tmp_path / "journal"
    path.write_bytes(b"kept")
    handle = os.open(path, os.O_RDWR)
    assert take(handle)
    os.close(handle)
    assert path.read_bytes() == b"kept"


def test_a_lock_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write here") as caught, claim(tmp_path / "file" / "x.lock"):
        pass
    assert caught.value.file == str(tmp_path / "file" / "x.lock")
