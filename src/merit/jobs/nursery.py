"""Forks this machine's jobs from a process that has done their imports: a job computes within seconds of its start.

The nursery imports what jobs import, and computes nothing: no library has started the threads that a fork would lose.
(OpenBLAS and Arrow's jemalloc start some at their import, and see to them at a fork.) What it forks is a child of the
process that asked, in a session of its own, with the files and variables that a new process would get. So whoever
starts, watches and kills a job sees no difference. Linux alone can hand over a child; and a GPU must not be
touched before a fork, which no import promises. There, and wherever something else is amiss, jobs start as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from merit.base.machine import PYTHON, merit_command, visible_gpus

OFF = "MERIT_COLD_JOBS"  # a variable: if it is set, every job does its own imports
_PER_JOB = ("MERIT_PARENT", "MERIT_OUTPUT")  # variables that nothing reads while it is imported
_SET_CHILD_SUBREAPER = 36  # of prctl: processes below this one become its children if their parent ends
_PATIENCE_SECONDS = 60.0  # until it has done its imports and forks
_POLL_SECONDS = 0.02
_AMD = Path("/dev/kfd")  # the driver of AMD's GPUs, which `visible_gpus` does not know
_HANDED_OVER_SECONDS = 0.0005  # between looks whether a fork has its parent


class Process(Protocol):
    """What an engine needs of a process that it has started, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after `timeout` seconds."""


class Forked:
    """A child that `subprocess` has not started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """See `Process`."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """See `Process`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("merit", timeout or 0)
            time.sleep(_POLL_SECONDS)
        return code


class Nursery:
    """The process that forks, seen from the one that asks.

    Args:
        modules: what it imports.
        env: its variables. A job with variables of its own is not forked, because libraries read theirs while they are
            imported. What a library sets in this process later goes along.
    """

    def __init__(self, modules: Sequence[str], env: dict[str, str]) -> None:
        self._env, self._before, self._folder = env, dict(os.environ), _here()
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.settimeout(_PATIENCE_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [*PYTHON, "-m", "merit.jobs.nursery", str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.closed = False

    def fork(self, command: Sequence[str], env: dict[str, str], output: BinaryIO) -> Process | None:
        """Starts `merit …`, its output appended to `output`. None: this command is to be started as ever."""
        head, folder = merit_command(), _here()
        changed = {name: value for name, value in env.items() if self._env.get(name) != value}
        own = [name for name in changed if name not in _PER_JOB and not self._set_since(name, changed[name])]
        own += self._env.keys() - env.keys()
        # A folder that was removed: a process of its own can still be in it.
        if self.closed or list(command[: len(head)]) != head or own or folder is None:
            return None
        enter = folder if folder != self._folder else None
        request = {"arguments": command[len(head) :], "env": changed, "cwd": enter, "parent": os.getpid()}
        pid = self._ask(json.dumps(request).encode(), output.fileno())
        return Forked(pid) if pid else None

    def _set_since(self, name: str, value: str) -> bool:
        """Whether a variable has this value because this process has set it so since the nursery was opened."""
        return self._before.get(name) != value == os.environ.get(name)

    def _ask(self, request: bytes, output: int) -> int:
        """The new child's pid; 0 if there is none, and then this nursery is closed."""
        libc = ctypes.CDLL(None)
        pid = 0
        libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self._line, [request], [output])
            pid = int(self._line.recv(20) or 0)
        except OSError:  # it is gone, or takes too long
            pid = self._last_word()
        finally:  # also where a signal ends this process
            libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
            if not pid:
                self.close()  # what it answered late would be taken for the next job's
        return pid

    def _last_word(self) -> int:
        """The child that it has begun all the same, or 0: then it can begin none any more."""
        try:
            self._line.shutdown(socket.SHUT_RD)
            return int(self._line.recv(20) or 0)
        except OSError:
            return 0
        finally:
            self.close()

    def close(self) -> None:
        """Ends it. Jobs that it has forked are not its children, and go on."""
        self.closed = True
        self._line.close()
        self._process.kill()
        self._process.wait()


_modules: tuple[str, ...] = ()
_ours: Nursery | None = None


def enable(modules: Sequence[str]) -> None:
    """Lets this process have a nursery. Without this call there is none: in a program that uses merit as a library,
    children that it did not start itself might be a surprise.

    Args:
        modules: what its jobs import.
    """
    global _modules
    _modules = tuple(modules)


def open_nursery(env: dict[str, str]) -> None:
    """Starts this process's nursery, if it may have one and has none. The earlier, the sooner the first job computes.

    Args:
        env: variables that are added to this process's for every job.
    """
    global _ours
    if _ours is not None or not _modules or OFF in os.environ or sys.platform != "linux":
        return
    if visible_gpus() or _AMD.exists():
        return
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # as some parents leave it: then no fork's end can be told
        return
    with contextlib.suppress(OSError):  # the system gives no further process
        _ours = Nursery(_modules, os.environ | env)
        atexit.register(_ours.close)


def fork(command: Sequence[str], env: dict[str, str], output: BinaryIO) -> Process | None:
    """As `Nursery.fork`, of this process's nursery; None if it has none."""
    return None if _ours is None else _ours.fork(command, env, output)


def _here() -> str | None:
    """The current folder; None if it was removed."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return None


def _main(line: socket.socket, modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(ImportError):  # the job that needs it will say so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    sys.argv = ["merit", *_serve(line)]
    runpy.run_module("merit", run_name="__main__", alter_sys=True)


def _serve(line: socket.socket) -> list[str]:
    """Forks as often as asked, and returns in the forks alone, with a job's arguments."""
    while True:
        data, files, _, _ = socket.recv_fds(line, 2**16, 1)
        if not data:  # the process that asks has ended
            sys.exit()
        between = os.fork()
        if not between:
            return _begin(line, json.loads(data), files[0])
        if os.waitpid(between, 0)[1]:
            line.send(b"0")
        os.close(files[0])


def _begin(line: socket.socket, request: dict[str, Any], output: int) -> list[str]:
    """Forks once more: a process whose parent ends becomes a child of the one that asked."""
    between = os.getpid()
    if os.fork():
        os._exit(0)
    os.setsid()  # before anybody knows its pid, and stops the group of that number
    while os.getppid() == between:
        time.sleep(_HANDED_OVER_SECONDS)
    mine = os.getppid() == request["parent"]
    line.send(str(os.getpid() if mine else 0).encode())
    line.close()
    if not mine:
        os._exit(1)
    if (generators := sys.modules.get("numpy.random")) is not None:  # Python's own does so by itself
        generators.seed()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if request["cwd"] is not None:  # not where both are already: after `sudo -u` they may not go there
        os.chdir(request["cwd"])
    os.environ.update(request["env"])
    arguments: list[str] = request["arguments"]
    return arguments


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
