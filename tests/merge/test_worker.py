"""A merge's thread that works, and one that never begins."""

from __future__ import annotations

import time

from merit.merge import stream
from merit.merge.stream import Worker


def test_it_works_and_ends():
    done = []
    item = Worker(lambda: done.append(1))
    item.start()
    deadline = time.monotonic() + 10
    while item.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert done == [1]
    assert not item.is_alive()


def test_one_that_never_begins_is_given_up(monkeypatch):
    monkeypatch.setattr(stream._thread, "start_new_thread", lambda work, arguments: 0)
    item = Worker(lambda: None)
    item.start()
    assert item.is_alive()
    monkeypatch.setattr(stream, "_BEGIN_SECONDS", 0.0)
    assert not item.is_alive()
