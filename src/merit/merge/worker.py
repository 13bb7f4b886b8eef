"""A thread whose start does not wait. `Thread.start` waits for ever for one that has no memory to begin with."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable

_BEGIN_SECONDS = 10.0  # a thread that has not begun by then never will


class Worker:
    """Calls `work`, which must not raise, in a thread that ends with the process."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._begun = self._ended = False
        self._since = 0.0

    def start(self) -> None:
        """Starts it.

        Raises:
            RuntimeError: the system gives no further thread.
        """
        self._since = time.monotonic()
        _thread.start_new_thread(self._run, ())

    def is_alive(self) -> bool:
        """Whether it works, or may still begin to."""
        return not self._ended and (self._begun or time.monotonic() - self._since < _BEGIN_SECONDS)

    def _run(self) -> None:
        self._begun = True
        try:
            self._work()
        finally:
            self._ended = True
