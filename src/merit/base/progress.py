"""How a stage reports its progress. Stages know this protocol; only the CLI knows a terminal."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_FILE_SECONDS = 0.5


class Bar(Protocol):
    """One line of progress."""

    def update(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        """Sets how much is done, out of how much, and a short note (a loss, a dataset's name)."""


class Progress(Protocol):
    """Where bars are shown."""

    def bar(self, name: str, *, total: float, unit: str = "") -> contextlib.AbstractContextManager[Bar]:
        """A new bar; it disappears when its context ends."""


class Counter:
    """Adds up and shows what is done, for work that reports each piece and not the sum."""

    def __init__(self, bar: Bar) -> None:
        self.done = 0
        self._bar = bar

    def __call__(self, count: int) -> None:
        self.done += count
        self._bar.update(self.done)

    def note(self, text: str) -> None:
        """Shows what is being worked on."""
        self._bar.update(self.done, note=text)


class _SilentBar:
    def update(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        pass


class SilentProgress:
    """Shows nothing: the default when a stage is used as a library."""

    @contextlib.contextmanager
    def bar(self, name: str, *, total: float, unit: str = "") -> Iterator[Bar]:
        yield _SilentBar()


def write_state(path: Path, done: float, total: float, note: str = "") -> None:
    """Rewrites a job's progress file. It is not worth an fsync, but nobody must read half of it."""
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps({"done": done, "total": total, "note": note}), encoding="utf-8")
    part.replace(path)


class _FileBar:
    def __init__(self, path: Path, total: float) -> None:
        self._path, self._total, self._said = path, total, 0.0

    def update(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        self._total = total or self._total
        if time.monotonic() - self._said < _FILE_SECONDS:
            return
        self._said = time.monotonic()
        write_state(self._path, done, self._total, note or "")


class FileProgress:
    """Rewrites a small JSON file, {"done", "total", "note"}, by which a job reports to its executor."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def bar(self, name: str, *, total: float, unit: str = "") -> Iterator[Bar]:
        yield _FileBar(self._path, total)


SILENT = SilentProgress()
