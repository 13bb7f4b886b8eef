"""`merit` in forked processes: torch and its kin are imported once for the whole campaign, not once a fault."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import warm

_POLL_SECONDS = 0.02


def import_everything() -> None:
    """What a run imports on its way."""
    import merit.report.page

    warm.import_everything()
    # The figures' library is the same 4 MB on every page, and takes a second to compress: the campaign does without.
    merit.report.page._plotly = lambda: ""  # type: ignore[assignment]


@dataclass(frozen=True)
class Ended:
    """A process that is over: exit code (negative: a signal), and what it said."""

    code: int
    said: str

    @property
    def lines(self) -> list[str]:
        return self.said.splitlines()


class Forked:
    """A forked child with the part of `Popen` that the local executor uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout if timeout is not None else 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("merit", timeout or 0)
            time.sleep(_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode


class Merit(Forked):
    """`merit ARGUMENTS` as a child; `prepare` runs in it first."""

    def __init__(self, *arguments: str | Path, log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self.log = log
        with log.open("wb") as output:
            super().__init__(_fork([str(item) for item in arguments], output.fileno(), prepare))

    def stopped(self, timeout: float = 300) -> bool:
        """Waits until the child has stopped itself; False if it ended first."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                return False
            time.sleep(_POLL_SECONDS)
        return False

    def send(self, number: int) -> None:
        """A signal, if the child is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self, timeout: float = 600) -> Ended:
        """Waits for the end of it; what does not end is killed, and that shows in the exit code."""
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
            code = -100  # no signal has this number
        return Ended(code, self.log.read_text(encoding="utf-8", errors="replace"))


def merit(*arguments: str | Path, log: Path, prepare: Callable[[], None] = lambda: None) -> Ended:
    """`merit ARGUMENTS` to its end."""
    return Merit(*arguments, log=log, prepare=prepare).end()


def call(function: Callable[[], None]) -> None:
    """Calls `function` in a child, whose threads go with it."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _fork(arguments: list[str], output: int, prepare: Callable[[], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    # Until the child has handlers of its own, a signal would meet those of a run that is ending.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    pid = os.fork()
    if not pid:
        _child(arguments, output, prepare)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _child(arguments: list[str], output: int, prepare: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False, encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", closefd=False, encoding="utf-8", buffering=1)
        # What the shell or pytest made of them is not what a terminal gives.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        code = _main(arguments, prepare)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _main(arguments: list[str], prepare: Callable[[], None]) -> int:
    from merit.cli.main import main
    from merit.jobs import process

    process.subprocess = _Subprocess()  # type: ignore[assignment]
    sys.argv = ["merit", *arguments]
    code = 0
    try:
        prepare()
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class _Subprocess:
    """What stands for the module `subprocess` in the local executor: jobs are forked too."""

    DEVNULL, STDOUT, TimeoutExpired = subprocess.DEVNULL, subprocess.STDOUT, subprocess.TimeoutExpired

    @staticmethod
    def Popen(command: Sequence[str], *, stdout: Any, env: dict[str, str], **_: Any) -> Forked:  # noqa: N802
        from merit.base.machine import merit_command

        head = merit_command()
        assert list(command[: len(head)]) == head

        def prepare() -> None:
            _let_go_of_locks()
            os.environ.clear()
            os.environ.update(env)

        return Forked(_fork(list(command[len(head) :]), stdout.fileno(), prepare))


def _let_go_of_locks() -> None:
    """What `exec` does for a real job: else one that outlives its killed run for a moment holds the run's lock."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if link.readlink().name == "lock":
                os.close(int(link.name))
